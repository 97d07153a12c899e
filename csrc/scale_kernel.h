// Kernel of scale.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "math_lanes.h"
#include "quantize_row.h"
#include "variants.h"

namespace galley {

GALLEY_VARIANTS(
    // out[n] = x[i] * factor[i], or x[i] * factor[0] where `one`, stored as any kind through
    // `scratch`[n].
    void scale_row(const float* x, const float* factor, bool one, int64_t n, float* scratch,
                   Kind kind, void* out);)

namespace GALLEY_VARIANT {

void scale_row(const float* x, const float* factor, bool one, int64_t n, float* scratch, Kind kind,
               void* out) {
  float* result = kind == Kind::f32 ? static_cast<float*>(out) : scratch;
  if (one) {
    for (int64_t i = 0; i < n; i++) result[i] = x[i] * factor[0];
  } else {
    for (int64_t i = 0; i < n; i++) result[i] = x[i] * factor[i];
  }
  if (kind != Kind::f32) store_row(result, n, kind, out);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
