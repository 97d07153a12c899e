// Definitions for selective_scan.h; compiled once per instruction set (variants.h).
//
//   step = softplus(dt)
//   S[n] = exp(step * a[n]) * S[n] + b[n] * (step * x)
//   y = sum over n, in order, of c[n] * S[n], + d * x, times silu(gate)
//
// Lanes are channels, so no sum runs over lanes.
#pragma once
#include "selective_scan.h"
#include "softplus_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

void selective_scan_run(const SelectiveRun& run, float* state) {
  const int lanes = static_cast<int>(run.channels);
  const Float d = load(run.d);
  for (int64_t t = 0; t < run.count; t++) {
    const Float x = load_part(run.x + t * run.x_stride, lanes);
    const Float step = softplus(load_part(run.dt + t * run.dt_stride, lanes));
    const Float in = step * x;
    const float* b = run.b + t * run.b_stride;
    const float* c = run.c + t * run.c_stride;
    Float sum = zero();
    for (int64_t n = 0; n < run.state_size; n++) {
      float* at = state + n * kScanChannels;
      const Float keep = exp(step * load(run.a + n * kScanChannels));
      const Float s = fma(all(b[n]), in, load(at) * keep);
      store(at, s);
      sum = fma(all(c[n]), s, sum);
    }
    sum = fma(d, x, sum);
    if (run.gate) sum = sum * silu(load_part(run.gate + t * run.gate_stride, lanes));
    store_part(run.out + t * run.out_stride, sum, lanes);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
