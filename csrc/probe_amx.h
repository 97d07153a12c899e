// Peak rates of tiles (probe.h).
#pragma once
#include "probe.h"
#include "tiles.h"

namespace galley {
namespace GALLEY_VARIANT {

// Of a round, for each value of a word.
constexpr int64_t kOperations = 4 * 2 * kTileRows * 16 * kTileWords;

int64_t probe_bf16(int64_t count) {
  configure_tiles(kTileRows, kTileRows);
  for (int64_t i = 0; i < count; i++) {
    add_bf16<c00, a0, b0>(), add_bf16<c01, a0, b1>();
    add_bf16<c10, a1, b0>(), add_bf16<c11, a1, b1>();
  }
  release_tiles();
  return count * kOperations * 2;
}

int64_t probe_int8(int64_t count) {
  configure_tiles(kTileRows, kTileRows);
  for (int64_t i = 0; i < count; i++) {
    add_unsigned<c00, a0, b0>(), add_unsigned<c01, a0, b1>();
    add_unsigned<c10, a1, b0>(), add_unsigned<c11, a1, b1>();
  }
  release_tiles();
  return count * kOperations * 4;
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
