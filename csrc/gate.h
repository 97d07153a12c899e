// Product with an activated gate.
#pragma once
#include "variants.h"

namespace galley {

enum class GateFunction : int { silu = 0, sigmoid = 1, identity = 2, gelu_tanh = 3, gelu = 4 };

GALLEY_VARIANTS(
    // out[n] = x * function(gate * scale), stored as any kind through `scratch`[n].
    void gate_row(const float* x, const float* gate, int64_t n, GateFunction function, float scale,
                  float* scratch, Kind kind, void* out);)

}  // namespace galley
