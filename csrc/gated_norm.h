// RMS norm with a gate.
#pragma once
#include "variants.h"

namespace galley {

GALLEY_VARIANTS(
    // Each of `groups` vectors of n elements of a row by itself, x = in * silu(gate) first if
    // `gate_first`, else the result is multiplied with silu(gate); weight [groups * n].
    void gated_norm_row(const float* in, const float* gate, const float* weight, int64_t groups,
                        int64_t n, float eps, bool gate_first, float gate_scale, float* scratch,
                        Kind kind, void* out);)

}  // namespace galley
