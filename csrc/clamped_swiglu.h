// The gated activation of gpt-oss.
#pragma once
#include "activation.h"

namespace galley {

GALLEY_VARIANTS(
    // out[n] = (u + 1) * g * sigmoid(alpha * g), with g = min(gate, limit) and u = up, at most
    // `limit` in magnitude.
    void clamped_swiglu_row(const float* gate_up, int64_t n, GateUp order, float alpha, float limit,
                            float* out);)

}  // namespace galley
