// Definitions for quantize_variants.h; compiled once per instruction set (variants.h).
#pragma once
#include "math_lanes.h"
#include "quantize_row.h"
#include "quantize_variants.h"

namespace galley {
namespace GALLEY_VARIANT {

void store_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k, Kind kind,
                uint8_t* out) {
  const int64_t bytes = activation_bytes(kind, k);
  for (int64_t r = 0; r < rows; r++) store_row(x + r * x_stride, k, kind, out + r * bytes);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
