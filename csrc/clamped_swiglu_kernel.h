// Kernel of clamped_swiglu.h; compiled once per instruction set (variants.h).
#pragma once
#include "clamped_swiglu.h"
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

GALLEY_INLINE Float clamped_swiglu(const Float& gate, const Float& up, float alpha, float limit) {
  const Float g = select(gate > all(limit), all(limit), gate);
  const Float high = select(up > all(limit), all(limit), up);
  const Float u = select(high < all(-limit), all(-limit), high);
  return (u + all(1.0f)) * (g / (all(1.0f) + exp(zero() - g * all(alpha))));
}

void clamped_swiglu_row(const float* gate_up, int64_t n, GateUp order, float alpha, float limit,
                        float* out) {
  const bool interleaved = order == GateUp::interleaved16;
  const float* up = gate_up + (interleaved ? kLanes : n);
  const int64_t stride = interleaved ? 2 : 1;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Float gate = load_part(gate_up + i * stride, part);
    store_part(out + i, clamped_swiglu(gate, load_part(up + i * stride, part), alpha, limit), part);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
