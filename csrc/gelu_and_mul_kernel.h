// Kernel of gelu_and_mul.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "activation.h"
#include "functions_lanes.h"
#include "quantize_row.h"

namespace galley {

namespace GALLEY_VARIANT {

void gelu_mul_row(const float* gate_up, int64_t n, GateUp order, float* scratch, Kind kind,
                  void* out) {
  float* result = kind == Kind::f32 ? static_cast<float*>(out) : scratch;
  const bool interleaved = order == GateUp::interleaved16;
  const float* up = gate_up + (interleaved ? kLanes : n);
  const int64_t stride = interleaved ? 2 : 1;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(result + i, gelu_tanh(load(gate_up + i * stride)) * load(up + i * stride));
  }
  if (i < n) {
    const int part = static_cast<int>(n - i);
    store_part(result + i, gelu_tanh(load_part(gate_up + i, part)) * load_part(up + i, part), part);
  }
  if (kind != Kind::f32) store_row(result, n, kind, out);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
