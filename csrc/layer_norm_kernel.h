// Kernel of layer_norm.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "math_lanes.h"
#include "quantize_row.h"
#include "variants.h"

namespace galley {

struct LayerNormShape {
  int64_t heads, n;  // vectors of a row, and their length
  float eps;
  const float* weight;  // [n], or [heads * n] where each vector has its own; null = 1
  const float* bias;    // the same; null = 0
  bool per_head;
};

GALLEY_VARIANTS(
    // x[heads * n] += add first, where add is not null. Then out = (x - mean) / sqrt(variance + eps)
    // * weight + bias for each vector of n, stored as any kind through `scratch`[heads * n].
    void layer_norm_row(const LayerNormShape& s, float* x, const float* add, float* scratch,
                        Kind kind, void* out);)

namespace GALLEY_VARIANT {

// Sum of f(x), in one order: element i goes to lane i % 16 of accumulator i / 16 % 4. Lanes beyond n
// add nothing.
template <class F> GALLEY_INLINE float sum_of(const float* x, int64_t n, F f) {
  Float acc[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int a = 0; a < 4; a++) acc[a] = acc[a] + f(load(x + i + a * kLanes));
  }
  for (int a = 0; i < n; i += kLanes, a++) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Int in_row = lane_numbers() < all(part);
    acc[a] = acc[a] + select(in_row, f(load_part(x + i, part)), zero());
  }
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

GALLEY_INLINE void layer_norm_vector(const float* x, const float* weight, const float* bias,
                                     int64_t n, float eps, float* out) {
  const float count = static_cast<float>(n);
  const Float mean = all(sum_of(x, n, [](const Float& v) { return v; }) / count);
  const float variance =
      sum_of(x, n, [&](const Float& v) { return (v - mean) * (v - mean); }) / count;
  const Float inverse = all(1.0f / __builtin_sqrtf(variance + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    Float y = (load_part(x + i, part) - mean) * inverse;
    if (weight) y = y * load_part(weight + i, part);
    if (bias) y = y + load_part(bias + i, part);
    store_part(out + i, y, part);
  }
}

void layer_norm_row(const LayerNormShape& s, float* x, const float* add, float* scratch, Kind kind,
                    void* out) {
  const int64_t width = s.heads * s.n;
  if (add) {
    for (int64_t i = 0; i < width; i++) x[i] += add[i];
  }
  float* normed = kind == Kind::f32 ? static_cast<float*>(out) : scratch;
  for (int64_t i = 0; i < width; i += s.n) {
    const int64_t own = s.per_head ? i : 0;
    layer_norm_vector(x + i, s.weight ? s.weight + own : nullptr, s.bias ? s.bias + own : nullptr,
                      s.n, s.eps, normed + i);
  }
  if (kind != Kind::f32) store_row(normed, width, kind, out);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
