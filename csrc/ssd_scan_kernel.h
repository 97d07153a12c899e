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
                            const float* b, const float* c, int64_t count, float* y) {
  Float s[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) s[i] = load(state + i * padded);
  for (int64_t t = 0; t < count; t++) {
    const Float keep = all(decay[t]), in = load(x + t * padded);
    Float sum = load(y + t * padded);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      s[i] = fma(all(b[t * kSsdRows + i]), in, s[i] * keep);
      sum = fma(all(c[t * kSsdRows + i]), s[i], sum);
    }
    store(y + t * padded, sum);
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) store(state + i * padded, s[i]);
}

// b or c of some tokens as [rows of the state / 8][tokens][8]: their rows are pages apart, in few sets
// of the cache.
GALLEY_INLINE void pack_rows(const float* from, int64_t stride, int64_t count, int64_t size,
                             float* to) {
  for (int64_t n = 0; n < size; n += kSsdRows) {
    const int64_t rows = size - n < kSsdRows ? size - n : kSsdRows;
    for (int64_t t = 0; t < count; t++) {
      memcpy(to + t * kSsdRows, from + t * stride + n, rows * sizeof(float));
    }
    to += count * kSsdRows;
  }
}

void ssd_scan_run(const SsdRun& run, float* state, float* scratch) {
  const int64_t padded = (run.head_dim + kLanes - 1) / kLanes * kLanes;
  float* x = scratch;
  float* y = x + kSsdTokens * padded;
  float* decay = y + kSsdTokens * padded;
  float* b = decay + kSsdTokens;
  float* c = b + kSsdTokens * (run.state_size + kSsdRows);
  for (int64_t start = 0; start < run.count; start += kSsdTokens) {
    const int64_t count = run.count - start < kSsdTokens ? run.count - start : kSsdTokens;
    for (int64_t t = 0; t < count; t++) {
      const float raw = run.dt[(start + t) * run.dt_stride];
      float step = softplus_one(fma(raw, run.dt_scale, run.dt_bias));
      step = step < run.dt_min ? run.dt_min : step;
      step = step > run.dt_max ? run.dt_max : step;
      decay[t] = exp_one(step * run.a);
      const float* from = run.x + (start + t) * run.x_stride;
      for (int64_t p = 0; p < padded; p += kLanes) {
        const int64_t left = run.head_dim - p;
        const Float in = load_part(from + p, left < kLanes ? static_cast<int>(left) : kLanes);
        store(x + t * padded + p, in * all(step));
        store(y + t * padded + p, zero());
      }
    }
    pack_rows(run.b + start * run.b_stride, run.b_stride, count, run.state_size, b);
    pack_rows(run.c + start * run.c_stride, run.c_stride, count, run.state_size, c);
    for (int64_t p = 0; p < padded; p += kLanes) {
      for (int64_t n = 0; n < run.state_size; n += kSsdRows) {
        float* rows = state + n * padded + p;
        const float *of_b = b + n * count, *of_c = c + n * count;
        if (n + kSsdRows <= run.state_size) {
          ssd_rows<kSsdRows>(rows, padded, decay, x + p, of_b, of_c, count, y + p);
          continue;
        }
        for (int64_t i = 0; n + i < run.state_size; i++) {
          ssd_rows<1>(rows + i * padded, padded, decay, x + p, of_b + i, of_c + i, count, y + p);
        }
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
