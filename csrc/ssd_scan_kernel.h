// Definitions for ssd_scan.h; compiled once per instruction set (variants.h).
//
//   step = softplus(dt * dt_scale + dt_bias), within [dt_min, dt_max]
//   S[n][p] = exp(step * a) * S[n][p] + b[n] * (step * x[p])
//   y[p] = sum over n, in order, of c[n] * S[n][p], + d * x[p]
//
// Lanes are elements p of the head, so no sum runs over lanes. Some rows n of the state stay in
// registers for several tokens.
#pragma once
#include "softplus_lanes.h"
#include "ssd_scan.h"

namespace galley {
namespace GALLEY_VARIANT {

// `rows` of the state and 16 elements of the head, for `count` tokens.
template <int rows>
GALLEY_INLINE void ssd_rows(float* state, int64_t padded, const float* decay, const float* x,
                            const float* b, int64_t b_stride, const float* c, int64_t c_stride,
                            int64_t count, float* y) {
  Float s[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) s[i] = load(state + i * padded);
  for (int64_t t = 0; t < count; t++) {
    const Float keep = all(decay[t]), in = load(x + t * padded);
    Float sum = load(y + t * padded);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      s[i] = fma(all(b[t * b_stride + i]), in, s[i] * keep);
      sum = fma(all(c[t * c_stride + i]), s[i], sum);
    }
    store(y + t * padded, sum);
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) store(state + i * padded, s[i]);
}

void ssd_scan_run(const SsdRun& run, float* state, float* scratch) {
  const int64_t padded = (run.head_dim + kLanes - 1) / kLanes * kLanes;
  float* x = scratch;
  float* y = x + kSsdTokens * padded;
  float* decay = y + kSsdTokens * padded;
  float* steps = decay + kSsdTokens;
  for (int64_t start = 0; start < run.count; start += kSsdTokens) {
    const int64_t count = run.count - start < kSsdTokens ? run.count - start : kSsdTokens;
    for (int64_t t = 0; t < count; t++) {
      const float raw = run.dt[(start + t) * run.dt_stride];
      float step = softplus_one(fma(raw, run.dt_scale, run.dt_bias));
      step = step < run.dt_min ? run.dt_min : step;
      step = step > run.dt_max ? run.dt_max : step;
      steps[t] = step;
      decay[t] = exp_one(step * run.a);
      const float* from = run.x + (start + t) * run.x_stride;
      for (int64_t p = 0; p < padded; p += kLanes) {
        const int64_t left = run.head_dim - p;
        const Float in = load_part(from + p, left < kLanes ? static_cast<int>(left) : kLanes);
        store(x + t * padded + p, in * all(step));
        store(y + t * padded + p, zero());
      }
    }
    const float* b = run.b + start * run.b_stride;
    const float* c = run.c + start * run.c_stride;
    for (int64_t p = 0; p < padded; p += kLanes) {
      int64_t n = 0;
      for (; n + 8 <= run.state_size; n += 8) {
        ssd_rows<8>(state + n * padded + p, padded, decay, x + p, b + n, run.b_stride, c + n,
                    run.c_stride, count, y + p);
      }
      for (; n < run.state_size; n++) {
        ssd_rows<1>(state + n * padded + p, padded, decay, x + p, b + n, run.b_stride, c + n,
                    run.c_stride, count, y + p);
      }
    }
    for (int64_t t = 0; t < count; t++) {
      const float* from = run.x + (start + t) * run.x_stride;
      const float* gate = run.gate ? run.gate + (start + t) * run.gate_stride : nullptr;
      float* out = run.out + (start + t) * run.out_stride;
      for (int64_t p = 0; p < padded; p += kLanes) {
        const int64_t left = run.head_dim - p;
        const int n = left < kLanes ? static_cast<int>(left) : kLanes;
        Float sum = fma(all(run.d), load_part(from + p, n), load(y + t * padded + p));
        if (gate) sum = sum * silu(load_part(gate + p, n) * all(run.gate_scale));
        store_part(out + p, sum, n);
      }
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
