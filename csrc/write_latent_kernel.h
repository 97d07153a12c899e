// Kernel of write_latent.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "kv_lanes.h"
#include "variants.h"

namespace galley {

GALLEY_VARIANTS(
    // n and m elements of a token, as one key of n + m of them, into slot `slot` of a page.
    void write_latent_key(const float* latent, int64_t n, const float* rope, int64_t m,
                          const KvFormat& format, uint8_t* page, int slot);)

namespace GALLEY_VARIANT {

void write_latent_key(const float* latent, int64_t n, const float* rope, int64_t m,
                      const KvFormat& format, uint8_t* page, int slot) {
  const float factor = 1.0f / format.k_scale;
  write_k(latent, n, format.kind, factor, page, slot);
  write_k(rope, m, format.kind, factor, page + n * kPageTokens * format.item_bytes(), slot);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
