// Kernel of write_latent.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "kv_lanes.h"
#include "variants.h"

namespace galley {

GALLEY_VARIANTS(
    // n and m elements of a token, as one key of n + m of them, into slot `slot` of a page.
    void write_latent_key(const float* latent, int64_t n, const float* rope, int64_t m, bool is_f32,
                          uint8_t* page, int slot);)

namespace GALLEY_VARIANT {

void write_latent_key(const float* latent, int64_t n, const float* rope, int64_t m, bool is_f32,
                      uint8_t* page, int slot) {
  write_k(latent, n, is_f32, page, slot);
  write_k(rope, m, is_f32, page + n * kPageTokens * (is_f32 ? 4 : 2), slot);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
