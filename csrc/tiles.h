// AMX: eight tile registers of up to 16 rows of 64 bytes. Compiled for that instruction set alone
// (variants.h).
#pragma once
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kTileRows = 16, kTileWords = 16, kTileBytes = 64;

// Tiles of C[2][2] += A[2] * B[2].
enum Tile : int { c00 = 0, c01 = 1, c10 = 2, c11 = 3, a0 = 4, a1 = 5, b0 = 6, b1 = 7 };

// Sizes of the tiles. They last until release_tiles, without which every switch of threads would save
// the tiles.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t tile_rows[16] = {};

  GALLEY_INLINE void set(Tile tile, int rows, int bytes) {
    tile_rows[tile] = static_cast<uint8_t>(rows);
    row_bytes[tile] = static_cast<uint16_t>(rows ? bytes : 0);
  }
  GALLEY_INLINE void load() const { asm volatile("ldtilecfg %0" ::"m"(*this)); }
};
// A and C have `upper` rows and, below, `lower`, 0 = there are none; A and B so many words of K.
GALLEY_INLINE void configure_tiles(int upper, int lower, int words = kTileWords) {
  TileConfig config;
  config.set(c00, upper, kTileBytes), config.set(c01, upper, kTileBytes);
  config.set(c10, lower, kTileBytes), config.set(c11, lower, kTileBytes);
  config.set(a0, upper, 4 * words), config.set(a1, lower, 4 * words);
  config.set(b0, words, kTileBytes), config.set(b1, words, kTileBytes);
  config.load();
}
GALLEY_INLINE void release_tiles() { asm volatile("tilerelease"); }

// Instructions by hand: compilers differ in what they know of tiles, and some forget that these read
// memory. Nothing else uses the registers.
template <Tile t> GALLEY_INLINE void load_tile(const void* at, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(at), "r"(stride), "i"(t) : "memory");
}
// The same of rows that are not read again soon: they stay out of the L1 cache.
template <Tile t, bool kStreams> GALLEY_INLINE void load_rows(const void* at, int64_t stride) {
  if (!kStreams) return load_tile<t>(at, stride);
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(at), "r"(stride), "i"(t) : "memory");
}
template <Tile t> GALLEY_INLINE void store_tile(void* at, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(at), "r"(stride), "i"(t) : "memory");
}
template <Tile t> GALLEY_INLINE void zero_tile() { asm volatile("tilezero %%tmm%c0" ::"i"(t)); }
// C += A * B of pairs of bf16, or of signed bytes and unsigned or signed ones.
template <Tile c, Tile a, Tile b> GALLEY_INLINE void add_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
template <Tile c, Tile a, Tile b> GALLEY_INLINE void add_unsigned() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
template <Tile c, Tile a, Tile b> GALLEY_INLINE void add_signed() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
