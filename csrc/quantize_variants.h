// Rows of float32 as activation rows, one function per instruction set; all give the same bits.
#pragma once
#include "linear.h"
#include "variants.h"

namespace galley {

GALLEY_VARIANTS(
    // `x_stride` in elements, out rows `activation_bytes` apart.
    void store_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k, Kind kind,
                    uint8_t* out);)

}  // namespace galley
