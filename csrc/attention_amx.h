// attend_tile by AMX tiles: q K and p V of bf16, sixteen rows at a time. Other caches go to AVX-512.
//
// Sixteen words of K of a page's tokens are a tile as they lie, and so are eight pairs of tokens of V by
// sixteen dimensions. Every number of rows goes through tiles, since the order of additions is theirs
// (linear_amx.h): of 32 dimensions, or of the tokens of a page.
#pragma once
#include "attention_rows.h"
#include "tiles.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kPairs = kPageTokens / 2;  // words of p for a page
constexpr int64_t kMostDims = 512;

// A: rows of q, sixteen words of each in a0, eight in a1. C: sixteen columns for each of the rows.
GALLEY_INLINE void configure_rows(int rows) {
  TileConfig config;
  for (const Tile c : {c00, c01, c10, c11}) config.set(c, rows, kTileBytes);
  config.set(a0, rows, kTileBytes), config.set(a1, rows, kTileBytes / 2);
  config.set(b0, kTileWords, kTileBytes), config.set(b1, kTileWords / 2, kTileBytes);
  config.load();
}

// Each load of a tile prefetches as many lines of what is read next as it reads: bursts hold loads up.
template <int kLines> GALLEY_INLINE void prefetch_lines(const uint8_t* at) {
  for (int i = 0; i < kLines; i++) __builtin_prefetch(at + i * 64, 0, 2);
}

// Scores of all pages; those past the sequence's end are masked later.
GALLEY_INLINE void score_pages(RowBlock& b, bool ahead) {
  const int64_t words = b.shape->words, q_bytes = 4 * words, steps = words / kTileWords;
  const uint8_t* q = reinterpret_cast<const uint8_t*>(b.tile->q + b.first * words);
  const uint8_t *const *pages = b.tile->pages, *const *next = b.tile->ahead;
  zero_tile<c00>(), zero_tile<c01>(), zero_tile<c10>(), zero_tile<c11>();
  int64_t at = 0;  // in bytes of 16 tokens
  for (int64_t i = 0; i < steps; i++, q += kTileBytes, at += kTileWords * 64) {
    load_tile<a0>(q, q_bytes);
    load_tile<b0>(pages[0] + at, 64), add_bf16<c00, a0, b0>();
    if (ahead) prefetch_lines<kTileWords>(next[0] + at);
    load_tile<b0>(pages[1] + at, 64), add_bf16<c01, a0, b0>();
    if (ahead) prefetch_lines<kTileWords>(next[1] + at);
    load_tile<b0>(pages[2] + at, 64), add_bf16<c10, a0, b0>();
    if (ahead) prefetch_lines<kTileWords>(next[2] + at);
    load_tile<b0>(pages[3] + at, 64), add_bf16<c11, a0, b0>();
    if (ahead) prefetch_lines<kTileWords>(next[3] + at);
  }
  if (words % kTileWords) {
    load_tile<a1>(q, q_bytes);
    load_tile<b1>(pages[0] + at, 64), add_bf16<c00, a1, b1>();
    load_tile<b1>(pages[1] + at, 64), add_bf16<c01, a1, b1>();
    load_tile<b1>(pages[2] + at, 64), add_bf16<c10, a1, b1>();
    load_tile<b1>(pages[3] + at, 64), add_bf16<c11, a1, b1>();
  }
  constexpr int64_t kBytes = kTileTokens * 4;
  store_tile<c00>(b.scores[0], kBytes), store_tile<c01>(b.scores[0] + 16, kBytes);
  store_tile<c10>(b.scores[0] + 32, kBytes), store_tile<c11>(b.scores[0] + 48, kBytes);
}

// V of a page, with zeros past the block's last token: memory there may hold NaN.
GALLEY_INLINE void copy_values(const RowBlock& b, int page, uint8_t* to) {
  const int64_t row = 4 * b.shape->head_dim, tokens = b.tokens - page * kPageTokens;
  memset(to, 0, kPairs * row);
  for (int64_t i = 0; i < (tokens + 1) / 2; i++) {
    memcpy(to + i * row, b.tile->values[page] + i * b.shape->value_row, row);
  }
  if (tokens % 2 == 0) return;
  int32_t* last = reinterpret_cast<int32_t*>(to + tokens / 2 * row);
  for (int64_t i = 0; i < b.shape->head_dim; i++) last[i] &= 0xffff;
}

GALLEY_INLINE void shrink_values(RowBlock& b) {
  for (int r = 0; r < b.rows; r++) {
    if (b.shrink[r] == 1.0f) continue;
    float* o = b.state(r) + 32;
    for (int64_t d = 0; d < b.shape->head_dim; d += kLanes) {
      store(o + d, load(o + d) * all(b.shrink[r]));
    }
  }
}

// o = o + p V for kCount times sixteen dimensions from `dim` on.
template <int kCount>
GALLEY_INLINE void add_values(RowBlock& b, int64_t dim, const uint8_t* const* values,
                              const int64_t* strides, int pages, bool ahead) {
  constexpr int64_t kLines = kPairs * 64;  // of a tile
  const int64_t bytes = 4 * b.shape->state_size(), next = b.shape->half_bytes + dim / kLanes * kLines;
  float* o = b.state(0) + 32 + dim;
  load_tile<c00>(o, bytes);
  if (kCount > 1) load_tile<c01>(o + 16, bytes), load_tile<c10>(o + 32, bytes);
  if (kCount > 1) load_tile<c11>(o + 48, bytes);
  for (int page = 0; page < pages; page++) {
    const uint8_t* v = values[page] + 4 * dim;
    load_tile<a1>(b.p[0] + page * kPairs, kTileTokens * 4);
    const uint8_t* to = ahead ? b.tile->ahead[page] + next : nullptr;
    load_tile<b1>(v, strides[page]), add_bf16<c00, a1, b1>();
    if (ahead) prefetch_lines<kPairs>(to);
    if (kCount == 1) continue;
    load_tile<b1>(v + 64, strides[page]), add_bf16<c01, a1, b1>();
    if (ahead) prefetch_lines<kPairs>(to + kLines);
    load_tile<b1>(v + 128, strides[page]), add_bf16<c10, a1, b1>();
    if (ahead) prefetch_lines<kPairs>(to + 2 * kLines);
    load_tile<b1>(v + 192, strides[page]), add_bf16<c11, a1, b1>();
    if (ahead) prefetch_lines<kPairs>(to + 3 * kLines);
  }
  store_tile<c00>(o, bytes);
  if (kCount > 1) store_tile<c01>(o + 16, bytes), store_tile<c10>(o + 32, bytes);
  if (kCount > 1) store_tile<c11>(o + 48, bytes);
}

GALLEY_INLINE void attend_values(RowBlock& b, bool ahead) {
  const int64_t dims = b.shape->head_dim;
  const int pages = static_cast<int>((b.tokens + kPageTokens - 1) / kPageTokens);
  alignas(64) uint8_t copy[kPairs * 4 * kMostDims];
  const uint8_t* values[kTilePages];
  int64_t strides[kTilePages];
  for (int page = 0; page < pages; page++) {
    values[page] = b.tile->values[page], strides[page] = b.shape->value_row;
  }
  if (b.tokens % kPageTokens) {
    copy_values(b, pages - 1, copy);
    values[pages - 1] = copy, strides[pages - 1] = 4 * dims;
  }
  shrink_values(b);
  int64_t d = 0;
  for (; d + 4 * kLanes <= dims; d += 4 * kLanes) add_values<4>(b, d, values, strides, pages, ahead);
  for (; d < dims; d += kLanes) add_values<1>(b, d, values, strides, pages, ahead);
}

void attend_tile(const AttentionShape& shape, const AttentionTile& tile) {
  // By the shape alone: all rows of a model have the same order of additions.
  if (shape.is_f32 || shape.magnitudes || shape.head_dim % 16 || shape.words % 8 ||
      shape.head_dim > kMostDims) {
    return avx512::attend_tile(shape, tile);
  }
  RowBlock b;
  b.shape = &shape;
  b.tile = &tile;
  for (int64_t row = 0; row < tile.rows;) {
    const int64_t before = row ? b.rows : 0;
    row += b.take(row);
    if (b.rows != before) configure_rows(static_cast<int>(b.rows));
    const bool ahead = tile.ahead[0] && b.first == 0;
    score_pages(b, ahead);
    weigh_rows<2>(b);
    attend_values(b, ahead && tile.values[0] == tile.pages[0] + shape.half_bytes);
  }
  release_tiles();
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
