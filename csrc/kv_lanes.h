// Writing a token's K into a page of the cache (attention_layout.h).
#pragma once
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kPageTokens = 16;

// n elements of a token's K: a column of the page.
GALLEY_INLINE void write_k(const float* x, int64_t n, bool is_f32, uint8_t* k, int slot) {
  if (is_f32) {
    float* column = reinterpret_cast<float*>(k) + slot;
    for (int64_t i = 0; i < n; i++) column[i * kPageTokens] = x[i];
    return;
  }
  int32_t lane[kLanes];
  uint32_t* column = reinterpret_cast<uint32_t*>(k) + slot;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    store(lane, to_bf16(load_part(x + i, part)));
    for (int j = 0; j < part; j += 2) {
      column[(i + j) / 2 * kPageTokens] =
          static_cast<uint32_t>(lane[j]) | static_cast<uint32_t>(lane[j + 1]) << 16;
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
