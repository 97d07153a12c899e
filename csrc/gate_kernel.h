// Definitions for gate.h; compiled once per instruction set (variants.h).
#pragma once
#include "functions_lanes.h"
#include "gate.h"
#include "quantize_row.h"

namespace galley {
namespace GALLEY_VARIANT {

GALLEY_INLINE Float gate_of(const Float& g, GateFunction function) {
  if (function == GateFunction::identity) return g;
  if (function == GateFunction::gelu_tanh) return gelu_tanh(g);
  if (function == GateFunction::gelu) return gelu(g);
  const Float one = all(1.0f), sigmoid = one / (one + exp(zero() - g));
  return function == GateFunction::sigmoid ? sigmoid : g * sigmoid;
}

void gate_row(const float* x, const float* gate, int64_t n, GateFunction function, float scale,
              float* scratch, Kind kind, void* out) {
  float* y = kind == Kind::f32 ? static_cast<float*>(out) : scratch;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Float g = gate_of(load_part(gate + i, part) * all(scale), function);
    store_part(y + i, load_part(x + i, part) * g, part);
  }
  if (kind != Kind::f32) store_row(y, n, kind, out);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
