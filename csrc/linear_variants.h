// The kernel of `linear`, one per instruction set.
#pragma once
#include "linear.h"
#include "variants.h"

namespace galley {

GALLEY_VARIANTS(
    // Rows [row_begin, row_end), at most kChunkRows of them, of panels [panel, panel + count).
    // `scratch` holds linear_scratch_bytes.
    void linear_tile(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                     int64_t row_end, uint8_t* scratch);)
GALLEY_TILE_VARIANT(void linear_tile(const LinearJob& job, int64_t panel, int64_t count,
                                     int64_t row_begin, int64_t row_end, uint8_t* scratch);)

}  // namespace galley
