// Definitions for gated_norm.h; compiled once per instruction set (variants.h).
#pragma once
#include "gated_norm.h"
#include "math_lanes.h"
#include "norm.h"
#include "quantize_row.h"

namespace galley {
namespace GALLEY_VARIANT {

// x[n] = in * silu(gate * scale)
GALLEY_INLINE void multiply_gate(const float* in, const float* gate, float scale, int64_t n,
                                 float* x) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Float g = silu(load_part(gate + i, part) * all(scale));
    store_part(x + i, load_part(in + i, part) * g, part);
  }
}

void gated_norm_row(const float* in, const float* gate, const float* weight, int64_t groups,
                    int64_t n, float eps, bool gate_first, float gate_scale, float* scratch,
                    Kind kind, void* out) {
  const int64_t width = groups * n;
  float* x = kind == Kind::f32 ? static_cast<float*>(out) : scratch;
  if (gate_first) {
    multiply_gate(in, gate, gate_scale, width, x);
  } else {
    memcpy(x, in, width * sizeof(float));
  }
  for (int64_t i = 0; i < width; i += n) {
    rms_norm_row(x + i, nullptr, weight + i, n, eps, x + i);
  }
  if (!gate_first) multiply_gate(x, gate, gate_scale, width, x);
  if (kind != Kind::f32) store_row(x, width, kind, out);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
