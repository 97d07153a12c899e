// Kernel of gelu_and_mul.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "activation.h"
#include "math_lanes.h"
#include "quantize_row.h"

namespace galley {

GALLEY_VARIANTS(
    // out[n] = gelu(gate) * up, stored as any kind through `scratch`[n].
    void gelu_mul_row(const float* gate_up, int64_t n, GateUp order, float* scratch, Kind kind,
                      void* out);)

namespace GALLEY_VARIANT {

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), written as x * sigmoid.
GALLEY_INLINE Float gelu(const Float& x) {
  const Float u = x * fma(x * x, all(0.0713548162726f), all(1.59576912160573f));
  return x / (all(1.0f) + exp(zero() - u));
}

void gelu_mul_row(const float* gate_up, int64_t n, GateUp order, float* scratch, Kind kind,
                  void* out) {
  float* result = kind == Kind::f32 ? static_cast<float*>(out) : scratch;
  const bool interleaved = order == GateUp::interleaved16;
  const float* up = gate_up + (interleaved ? kLanes : n);
  const int64_t stride = interleaved ? 2 : 1;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(result + i, gelu(load(gate_up + i * stride)) * load(up + i * stride));
  }
  if (i < n) {
    const int part = static_cast<int>(n - i);
    store_part(result + i, gelu(load_part(gate_up + i, part)) * load_part(up + i, part), part);
  }
  if (kind != Kind::f32) store_row(result, n, kind, out);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
