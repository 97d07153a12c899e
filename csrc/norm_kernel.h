// Definitions for norm.h; compiled once per instruction set (variants.h).
#pragma once
#include "math_lanes.h"
#include "norm.h"
#include "quantize_row.h"

namespace galley {
namespace GALLEY_VARIANT {

// Sum of squares in one order: element i goes to lane i % 16 of accumulator i / 16 % 4.
GALLEY_INLINE float sum_of_squares(float* x, const float* add, int64_t n) {
  Float acc[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int a = 0; a < 4; a++) {
      Float v = load(x + i + a * kLanes);
      if (add) {
        v = v + load(add + i + a * kLanes);
        store(x + i + a * kLanes, v);
      }
      acc[a] = fma(v, v, acc[a]);
    }
  }
  for (int a = 0; i < n; i += kLanes, a++) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    Float v = load_part(x + i, part);
    if (add) {
      v = v + load_part(add + i, part);
      store_part(x + i, v, part);
    }
    acc[a] = fma(v, v, acc[a]);
  }
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

void rms_norm_row(float* x, const float* add, const float* weight, int64_t n, float eps,
                  float* out) {
  const float mean = sum_of_squares(x, add, n) / static_cast<float>(n);
  const Float inverse = all(1.0f / __builtin_sqrtf(mean + eps));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(out + i, load(x + i) * inverse * load(weight + i));
  }
  if (i < n) {
    const int part = static_cast<int>(n - i);
    store_part(out + i, load_part(x + i, part) * inverse * load_part(weight + i, part), part);
  }
}

void rms_norm_row_as(float* x, const float* add, const float* weight, int64_t heads, int64_t n,
                     float eps, float* scratch, Kind kind, void* out) {
  float* normed = kind == Kind::f32 ? static_cast<float*>(out) : scratch;
  for (int64_t i = 0; i < heads * n; i += n) {
    rms_norm_row(x + i, add ? add + i : nullptr, weight, n, eps, normed + i);
  }
  if (kind != Kind::f32) store_row(normed, heads * n, kind, out);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
