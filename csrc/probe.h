// Loops that measure the machine's peak rates.
#pragma once
#include "variants.h"

namespace galley {

GALLEY_VARIANTS(
    // Reads data[bytes] once.
    void probe_read(const uint8_t* data, int64_t bytes);
    // `count` rounds of independent multiply-adds in registers: f32, pairs of bf16, quads of int8.
    // Returns the number of operations, two per multiply-add; 0 where the set has no such
    // instruction.
    int64_t probe_f32(int64_t count);
    int64_t probe_bf16(int64_t count);
    int64_t probe_int8(int64_t count);)
GALLEY_TILE_VARIANT(
    int64_t probe_bf16(int64_t count);
    int64_t probe_int8(int64_t count);)

}  // namespace galley
