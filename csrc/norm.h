// RMS norm of one row.
#pragma once
#include "variants.h"

namespace galley {

GALLEY_VARIANTS(
    // x[n] += add[n] first, where add is not null. Then out = x / sqrt(mean(x^2) + eps) * weight,
    // as f32; n >= 1. `out` may be x.
    void rms_norm_row(float* x, const float* add, const float* weight, int64_t n, float eps,
                      float* out);
    // The same for each of `heads` vectors of n elements in a row, stored as any kind through
    // `scratch`[heads * n].
    void rms_norm_row_as(float* x, const float* add, const float* weight, int64_t heads, int64_t n,
                         float eps, float* scratch, Kind kind, void* out);)

}  // namespace galley
