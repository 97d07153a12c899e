// attend_whole by AMX tiles: sixteen queries of a head over all tokens of a short sequence.
//
// All scores of a query are known before its first weight, so its sum and its result are made once,
// without the running maximum of attend_tile. Scores are products of 32 dimensions as they lie in
// the query rows; results are those of even and of odd pages, added at the end. Neither depends on
// other queries.
#pragma once
#include "attention.h"
#include "math_lanes.h"
#include "tiles.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kPageTokens = 16;
constexpr int kPairs = kPageTokens / 2;
constexpr int64_t kScoreRow = kWholeTokens + kPageTokens;  // whole pages would share a few sets of the cache

struct WholeWork {
  alignas(64) float scores[kTileRows][kScoreRow];  // then weights, bf16, at the same rows
  alignas(64) float products[2][kTileRows][2 * kLanes];  // of even and of odd pages
  alignas(64) uint8_t values[kPairs * 4 * kWholeDims];   // V of the last page, zeros behind its tokens
  float inverse[kTileRows];                              // 1 / sum of a row's weights
};

// A: rows of q, sixteen words of each in a0, eight of q or of weights in a1.
GALLEY_INLINE void configure_queries(int rows) {
  TileConfig config;
  for (const Tile c : {c00, c01, c10, c11}) config.set(c, rows, kTileBytes);
  config.set(a0, rows, kTileBytes), config.set(a1, rows, kTileBytes / 2);
  config.set(b0, kTileWords, kTileBytes), config.set(b1, kPairs, kTileBytes);
  config.load();
}

template <Tile a, Tile b>
GALLEY_INLINE void add_scores(const uint8_t* const* pages, int64_t count, int64_t at) {
  load_tile<b>(pages[0] + at, 64), add_bf16<c00, a, b>();
  if (count > 1) load_tile<b>(pages[1] + at, 64), add_bf16<c01, a, b>();
  if (count > 2) load_tile<b>(pages[2] + at, 64), add_bf16<c10, a, b>();
  if (count > 3) load_tile<b>(pages[3] + at, 64), add_bf16<c11, a, b>();
}

// Scores of up to four pages.
GALLEY_INLINE void score_pages(const AttentionShape& shape, const WholeAttention& job,
                               const uint8_t* q, int64_t page, float* scores) {
  const int64_t left = job.pages - page, count = left < 4 ? left : 4;
  constexpr int64_t kBytes = kScoreRow * 4;
  zero_tile<c00>(), zero_tile<c01>(), zero_tile<c10>(), zero_tile<c11>();
  int64_t word = 0;
  for (; word + kTileWords <= shape.words; word += kTileWords) {
    load_tile<a0>(q + 4 * word, job.q_bytes);
    add_scores<a0, b0>(job.keys + page, count, word * 64);
  }
  if (word < shape.words) {
    load_tile<a1>(q + 4 * word, job.q_bytes);
    add_scores<a1, b1>(job.keys + page, count, word * 64);
  }
  scores += page * kPageTokens;
  store_tile<c00>(scores, kBytes);
  if (count > 1) store_tile<c01>(scores + kPageTokens, kBytes);
  if (count > 2) store_tile<c10>(scores + 2 * kPageTokens, kBytes);
  if (count > 3) store_tile<c11>(scores + 3 * kPageTokens, kBytes);
}

// The largest of a row's scores, of which those behind the last token become -infinity.
GALLEY_INLINE float largest(const WholeAttention& job, float* row) {
  float* last = row + (job.pages - 1) * kPageTokens;
  const int rest = static_cast<int>(job.tokens - (job.pages - 1) * kPageTokens);
  const Int counts = lane_numbers() < all(rest);
  store(last, select(counts, load(last), all(-__builtin_inff())));
  Float even = load(last), odd = even;
  int64_t page = 0;
  for (; page + 2 <= job.pages; page += 2) {
    even = max(even, load(row + page * kPageTokens));
    odd = max(odd, load(row + (page + 1) * kPageTokens));
  }
  return max_lane(max(even, odd));
}

// 2^x for x <= 0 to 13 bits: weights are rounded to 8.
GALLEY_INLINE Float exp2_of_weight(const Float& x) {
  const Float r{{_mm512_reduce_ps(x.part[0], _MM_FROUND_TO_NEG_INF)}};
  Float p = fma(all(7.802452e-2f), r, all(2.2606716e-1f));
  p = fma(p, r, all(6.9583354e-1f));
  p = fma(p, r, all(9.9992522e-1f));
  return Float{{_mm512_scalef_ps(p.part[0], x.part[0])}};
}

// A row's scores to weights. Returns 1 / their sum.
GALLEY_INLINE float weigh(const AttentionShape& shape, const WholeAttention& job, float largest,
                          float* row) {
  const Float scale = all(shape.scale), minus_m = all(-(largest * shape.scale));
  uint16_t* weights = reinterpret_cast<uint16_t*>(row);
  Float sums = zero();
  int64_t page = 0;
  for (; page + 2 <= job.pages; page += 2) {
    const float* s = row + page * kPageTokens;
    const Float p0 = exp2_of_weight(fma(load(s), scale, minus_m));
    const Float p1 = exp2_of_weight(fma(load(s + kPageTokens), scale, minus_m));
    store_bf16(weights + page * kPageTokens, p0, p1);
    sums = sums + (p0 + p1);
  }
  if (page < job.pages) {
    const Float p = exp2_of_weight(fma(load(row + page * kPageTokens), scale, minus_m));
    store_bf16(weights + page * kPageTokens, p);
    sums = sums + p;
  }
  return 1.0f / sum(sums);
}

// Weights of a page's tokens times sixteen or thirty-two dimensions of V.
template <Tile low, Tile high>
GALLEY_INLINE void add_page(const float* weights, const uint8_t* values, int64_t stride, bool two) {
  load_tile<a1>(weights, kScoreRow * 4);
  load_tile<b1>(values, stride), add_bf16<low, a1, b1>();
  if (two) load_tile<b1>(values + 64, stride), add_bf16<high, a1, b1>();
}

GALLEY_INLINE void add_values(const AttentionShape& shape, const WholeAttention& job, int64_t dim,
                              WholeWork& work) {
  const bool two = dim + kLanes < shape.head_dim;
  const int64_t stride = 4 * shape.head_dim;
  zero_tile<c00>(), zero_tile<c01>(), zero_tile<c10>(), zero_tile<c11>();
  const auto values = [&](int64_t page) {
    const uint8_t* v = page + 1 < job.pages ? job.keys[page] + shape.half_bytes : work.values;
    return v + 4 * dim;
  };
  int64_t page = 0;
  for (; page + 2 <= job.pages; page += 2) {
    add_page<c00, c01>(work.scores[0] + page * kPairs, values(page), stride, two);
    add_page<c10, c11>(work.scores[0] + (page + 1) * kPairs, values(page + 1), stride, two);
  }
  if (page < job.pages) {
    add_page<c00, c01>(work.scores[0] + page * kPairs, values(page), stride, two);
  }
  constexpr int64_t kBytes = 2 * kTileBytes;
  store_tile<c00>(work.products[0][0], kBytes), store_tile<c01>(work.products[0][0] + kLanes, kBytes);
  store_tile<c10>(work.products[1][0], kBytes), store_tile<c11>(work.products[1][0] + kLanes, kBytes);
}

// V of the last page: memory behind the sequence's last token may hold NaN.
GALLEY_INLINE void copy_last_values(const AttentionShape& shape, const WholeAttention& job,
                                    uint8_t* to) {
  const int64_t row = 4 * shape.head_dim, tokens = job.tokens - (job.pages - 1) * kPageTokens;
  const uint8_t* from = job.keys[job.pages - 1] + shape.half_bytes;
  memcpy(to, from, (tokens + 1) / 2 * row);
  memset(to + (tokens + 1) / 2 * row, 0, (kPairs - (tokens + 1) / 2) * row);
  if (tokens % 2 == 0) return;
  int32_t* last = reinterpret_cast<int32_t*>(to + tokens / 2 * row);
  for (int64_t i = 0; i < shape.head_dim; i += kLanes) store(last + i, load(last + i) & all(0xffff));
}

GALLEY_INLINE void store_result(const WholeAttention& job, int64_t row, int64_t column, const Float& x) {
  uint8_t* out = job.out + row * job.out_bytes;
  if (job.out_is_f32) return store(reinterpret_cast<float*>(out) + column, x);
  store_bf16(reinterpret_cast<uint16_t*>(out) + column, x);
}

// The first head of a job. `configured`: rows that the tiles have, 0 = none.
GALLEY_INLINE void attend_head(const AttentionShape& shape, const WholeAttention& job, int& configured,
                               WholeWork& work) {
  copy_last_values(shape, job, work.values);
  for (int64_t first = 0; first < job.rows; first += kTileRows) {
    const int rows = static_cast<int>(job.rows - first < kTileRows ? job.rows - first : kTileRows);
    if (rows != configured) configure_queries(rows);
    configured = rows;
    const uint8_t* q = job.q + first * job.q_bytes;
    for (int64_t page = 0; page < job.pages; page += 4) {
      score_pages(shape, job, q, page, work.scores[0]);
    }
    float most[kTileRows];
    for (int r = 0; r < rows; r++) most[r] = largest(job, work.scores[r]);
    for (int r = 0; r < rows; r++) work.inverse[r] = weigh(shape, job, most[r], work.scores[r]);
    for (int64_t dim = 0; dim < shape.head_dim; dim += 2 * kLanes) {
      add_values(shape, job, dim, work);
      for (int r = 0; r < rows; r++) {
        const Float inverse = all(work.inverse[r] * shape.value_scale);
        const float *even = work.products[0][r], *odd = work.products[1][r];
        store_result(job, first + r, dim, (load(even) + load(odd)) * inverse);
        if (dim + kLanes >= shape.head_dim) continue;
        const Float high = load(even + kLanes) + load(odd + kLanes);
        store_result(job, first + r, dim + kLanes, high * inverse);
      }
    }
  }
}

void attend_whole(const AttentionShape& shape, WholeAttention job) {
  WholeWork work;
  int configured = 0;
  for (int64_t head = 1; head <= job.heads; head++) {
    attend_head(shape, job, configured, work);
    job.q += 4 * shape.words;
    job.out += shape.head_dim * (job.out_is_f32 ? 4 : 2);
    if (head % job.group) continue;
    for (int64_t page = 0; page < job.pages; page++) job.keys[page] += job.head_bytes;
  }
  release_tiles();
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
