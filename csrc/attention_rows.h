// Rows of attention over a tile: their scores, masks and weights; included by kernels of attention.
#pragma once
#include "attention.h"
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

// Sizes of a register block: query rows, pages of scores, registers of output dimensions.
#if defined(GALLEY_AMX)
constexpr int kRows = 16;
#elif GALLEY_PARTS == 1
constexpr int kRows = 6, kPages = 4, kSlice = 4;
#elif GALLEY_PARTS == 2
constexpr int kRows = 2, kPages = 2, kSlice = 2;
#else
constexpr int kRows = 2, kPages = 1, kSlice = 1;
#endif
constexpr int kPageTokens = 16;
constexpr int kTileTokens = 64;

GALLEY_INLINE float greater(float a, float b) { return a > b ? a : b; }
GALLEY_INLINE float exp2_one(float x) {
  float lane[kLanes];
  store(lane, exp2_nonpositive(all(x)));
  return lane[0];
}

// Some rows of a tile, and intermediate results for them.
struct RowBlock {
  const AttentionShape* shape;
  const AttentionTile* tile;
  int64_t first;   // row of the tile
  int64_t rows;    // kRows at most
  int64_t tokens;  // tokens of the tile that at least one of the rows attends to
  alignas(64) float scores[kRows][kTileTokens];
  alignas(64) uint32_t p[kRows][kTileTokens];  // words
  float shrink[kRows];                         // 2^(m - m')

  // Up to kRows rows from `row` on; returns their number.
  GALLEY_INLINE int64_t take(int64_t row) {
    const int64_t left = tile->rows - row;
    first = row;
    rows = left < kRows ? left : kRows;
    // `last` never decreases from row to row.
    const int64_t reach = tile->last[first + rows - 1] - tile->start;
    tokens = reach < kTileTokens ? reach : kTileTokens;
    return rows;
  }
  float* state(int r) const { return tile->state + (first + r) * shape->state_size(); }
};

// Scores fall with the distance of the token (ALiBi).
__attribute__((noinline)) inline void add_slope(RowBlock& b, int r) {
  const int64_t row = b.first + r;
  const Float slope = all(b.tile->slopes[row]);
  const float distance = static_cast<float>(b.tile->start - b.tile->position[row]);
  alignas(64) static const float numbers[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                    8, 9, 10, 11, 12, 13, 14, 15};
  const Float first = load(numbers) + all(distance);
  for (int i = 0; i < kTileTokens; i += kLanes) {
    const Float from_row = first + all(static_cast<float>(i));  // behind the row it is positive
    const Float fall = min(from_row, zero() - from_row);
    store(b.scores[r] + i, fma(slope, fall, load(b.scores[r] + i)));
  }
}

// Scores have a bias by the distance of the token. Sixteen tokens whose distances are all beyond the
// table's end read its padding.
__attribute__((noinline)) inline void add_bias(RowBlock& b, int r) {
  const int64_t row = b.first + r, reach = b.shape->reach, most = 2 * reach + 1;
  const int64_t first = b.tile->start - b.tile->position[row] + reach;
  const float* table = b.shape->biases + b.tile->biases[row] + kBiasPadding;
  for (int i = 0; i < kTileTokens; i += kLanes) {
    const int64_t at = first + i;
    const int64_t from = at < -kBiasPadding ? -kBiasPadding : at > most ? most : at;
    store(b.scores[r] + i, load(b.scores[r] + i) + load(table + from));
  }
}

// Masked scores become -infinity, so that their p is exactly 0.
GALLEY_INLINE void mask_scores(RowBlock& b, int r) {
  const int64_t row = b.first + r;
  const int64_t first = b.tile->first[row] - b.tile->start;
  const int64_t last = b.tile->last[row] - b.tile->start;
  if (first <= 0 && last >= kTileTokens) return;
  const Int low = all(static_cast<int32_t>(first < 0 ? 0 : first));
  const Int high = all(static_cast<int32_t>(last > kTileTokens ? kTileTokens : last));
  for (int i = 0; i < kTileTokens; i += kLanes) {
    const Int token = lane_numbers() + all(i);
    const Int counts = (token >= low) & (token < high);
    store(b.scores[r] + i, select(counts, load(b.scores[r] + i), all(-__builtin_inff())));
  }
}

__attribute__((noinline)) inline void cap_scores(RowBlock& b, int r) {
  const Float cap = all(b.shape->soft_cap), scale = all(b.shape->cap_scale);
  for (int i = 0; i < kTileTokens; i += kLanes) {
    store(b.scores[r] + i, cap * tanh(load(b.scores[r] + i) * scale));
  }
}

GALLEY_INLINE Float page_scales(const uint8_t* scales) {
  return load(reinterpret_cast<const float*>(scales));
}

__attribute__((noinline)) inline void scale_scores(RowBlock& b, int r) {
  for (int i = 0; i < kTilePages; i++) {
    float* s = b.scores[r] + i * kPageTokens;
    store(s, load(s) * page_scales(b.tile->k_scales[i]));
  }
}

// Weights of codes of V. A token that has none may have any scale, NaN as well.
GALLEY_INLINE Float scaled_weights(const Float& p, const uint8_t* scales) {
  return select(p > zero(), p * page_scales(scales), zero());
}

// The maximum of row r, including this tile's scores.
GALLEY_INLINE float new_maximum(RowBlock& b, int r) {
  if (b.tile->k_scales[0]) scale_scores(b, r);
  if (b.shape->soft_cap > 0.0f) cap_scores(b, r);
  if (b.tile->slopes) add_slope(b, r);
  if (b.tile->biases) add_bias(b, r);
  mask_scores(b, r);
  const float* s = b.scores[r];
  const Float highest = max(max(load(s), load(s + 16)), max(load(s + 32), load(s + 48)));
  return greater(b.state(r)[0], max_lane(highest) * b.shape->scale);
}

// Scores to weights p, relative to the maximum m. kTokens: in a word of p, 2 of bf16 or 1.
template <int kTokens> GALLEY_INLINE void weigh_row(RowBlock& b, int r, float m, float shrink) {
  const Float scale = all(b.shape->scale), minus_m = all(-m);
  float* state = b.state(r);
  const float* s = b.scores[r];
  Float p0 = exp2_nonpositive(fma(load(s), scale, minus_m));
  Float p1 = exp2_nonpositive(fma(load(s + 16), scale, minus_m));
  Float p2 = exp2_nonpositive(fma(load(s + 32), scale, minus_m));
  Float p3 = exp2_nonpositive(fma(load(s + 48), scale, minus_m));
  b.shrink[r] = shrink;
  state[0] = m;
  store(state + 16, fma(load(state + 16), all(shrink), (p0 + p1) + (p2 + p3)));
  if (kTokens == 2 && b.tile->v_scales[0]) {
    p0 = scaled_weights(p0, b.tile->v_scales[0]);
    p1 = scaled_weights(p1, b.tile->v_scales[1]);
    p2 = scaled_weights(p2, b.tile->v_scales[2]);
    p3 = scaled_weights(p3, b.tile->v_scales[3]);
  }
  if (kTokens == 2) {
    uint16_t* p = reinterpret_cast<uint16_t*>(b.p[r]);
    store_bf16(p, p0, p1);
    store_bf16(p + 32, p2, p3);
  } else {
    float* p = reinterpret_cast<float*>(b.p[r]);
    store(p, p0);
    store(p + 16, p1);
    store(p + 32, p2);
    store(p + 48, p3);
  }
}

// The weights of all rows of a block. The maxima come first, and one exponential gives `shrink` of them
// all.
template <int kTokens> GALLEY_INLINE void weigh_rows(RowBlock& b) {
  static_assert(kRows <= kLanes, "");
  float m[kLanes] = {}, fall[kLanes] = {}, shrink[kLanes];
  for (int r = 0; r < b.rows; r++) {
    m[r] = new_maximum(b, r);
    fall[r] = b.state(r)[0] - m[r];
  }
  store(shrink, exp2_nonpositive(load(fall)));
  for (int r = 0; r < b.rows; r++) weigh_row<kTokens>(b, r, m[r], shrink[r]);
}

// A part of what is read next, K and, where it lies behind K, V.
GALLEY_INLINE void prefetch_share(const AttentionShape& shape, const AttentionTile& tile,
                                  int64_t part, int64_t parts) {
  const bool has_values = tile.values[0] == tile.pages[0] + shape.half_bytes;
  const int64_t lines = shape.half_bytes / (has_values ? 32 : 64);
  const int64_t begin = lines * part / parts, end = lines * (part + 1) / parts;
  for (int page = 0; page < kTilePages; page++) {
    for (int64_t i = begin; i < end; i++) __builtin_prefetch(tile.ahead[page] + i * 64, 0, 2);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
