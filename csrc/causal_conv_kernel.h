// Definitions for causal_conv.h; compiled once per instruction set (variants.h).
#pragma once
#include "causal_conv.h"
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

// Tokens are the outer loop: rows of x and out may be pages apart.
void causal_conv_run(const ConvRun& run, float* state) {
  const int64_t kept = run.taps - 1;
  for (int64_t t = 0; t < run.count; t++) {
    const float* x_row = run.x + t * run.x_stride;
    for (int64_t c = 0; c < run.channels; c += kLanes) {
      const int n = run.channels - c < kLanes ? static_cast<int>(run.channels - c) : kLanes;
      const float* weight = run.weight + c;
      float* past = state + c;
      Float x = load_part(x_row + c, n);
      if (run.before) x = x * load_part(run.before + t * run.before_stride + c, n);
      Float sum = load(run.bias + c);
      for (int64_t k = 0; k < kept; k++) {
        const Float old = load(past + k * kConvChannels);
        sum = fma(load(weight + k * kConvChannels), old, sum);
        if (k > 0) store(past + (k - 1) * kConvChannels, old);
      }
      if (kept > 0) store(past + (kept - 1) * kConvChannels, x);
      sum = fma(load(weight + kept * kConvChannels), x, sum);
      if (run.silu) sum = silu(sum);
      if (run.after) sum = sum * load_part(run.after + t * run.after_stride + c, n);
      store_part(run.out + t * run.out_stride + c, sum, n);
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
