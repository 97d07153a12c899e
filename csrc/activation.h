// Elementwise kernels of one row.
#pragma once
#include "variants.h"

namespace galley {

// Order of the columns of the gate and the up projection in a row of 2n.
enum class GateUp : int { halves = 0, interleaved16 = 1 };

GALLEY_VARIANTS(
    // out[n] = silu(gate) * up, stored as any kind through `scratch`[n].
    void silu_mul_row(const float* gate_up, int64_t n, GateUp order, float* scratch, Kind kind,
                      void* out);
    // The same with gelu.
    void gelu_mul_row(const float* gate_up, int64_t n, GateUp order, float* scratch, Kind kind,
                      void* out);
    void add_row(float* x, const float* y, int64_t n);)

}  // namespace galley
