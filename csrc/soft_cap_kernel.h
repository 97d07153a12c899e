// Kernel of soft_cap.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "math_lanes.h"
#include "variants.h"

namespace galley {

GALLEY_VARIANTS(
    // x[n] = cap * tanh(x * inverse), where inverse is 1 / cap.
    void soft_cap_row(float* x, int64_t n, float cap, float inverse);)

namespace GALLEY_VARIANT {

void soft_cap_row(float* x, int64_t n, float cap, float inverse) {
  const Float high = all(cap), factor = all(inverse);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, high * tanh(load(x + i) * factor));
  if (i < n) {
    const int part = static_cast<int>(n - i);
    store_part(x + i, high * tanh(load_part(x + i, part) * factor), part);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
