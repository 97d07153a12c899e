// attend_latents by AMX tiles: rows of all heads over a chunk of a latent cache of bf16.
//
//   scores   q K^T  [16 rows][16 tokens]      K of a page's tokens is a tile as it lies
//   weights  p^T    [16 pairs of tokens][16 rows]
//   result   V^T p^T  [16 dimensions][16 rows]
//
// A line of K holds two elements of sixteen tokens. Those of two pages become a row of V^T for each of the two
// elements by shifts alone where tokens t and t + 16 are a pair.
//
// All scores of a row are known before its first weight, so its maximum is that of the chunk, and its result
// is summed in tiles from the first token to the last. Tokens behind a row's last one have the weight 0: how many
// follow does not change a bit.
#pragma once
#include "attention.h"
#include "exchange_lanes.h"
#include "tiles.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kPageTokens = 16;
constexpr int64_t kScoreBytes = 4 * kLatentScores;
constexpr int64_t kTileNumbers = kTileRows * kTileWords;  // of a tile
constexpr int64_t kMostPairs = kWholeTokens / (2 * kPageTokens);

GALLEY_INLINE void fetch_tile(const uint8_t* lines) {
  for (int i = 0; i < kTileRows; i++) __builtin_prefetch(lines + 64 * i, 0, 2);
}

// Scores of a block of rows with four pages at a time, or of two blocks with two. Keys stay out of the L1 cache, so that
// the rows stay in it. One block waits for memory: each tile fetches the next one of its page into the L2 cache.
template <bool kTwo>
GALLEY_INLINE void score_latents(const AttentionShape& shape, const LatentAttention& job,
                                 int64_t row) {
  const int64_t words = shape.words, q_bytes = 4 * words;
  float* scores = job.scores + row * kLatentScores;
  for (int64_t first = 0; first * kPageTokens < job.tokens; first += kTwo ? 2 : 4) {
    const uint8_t* const* pages = job.pages + first;
    const uint8_t* const* following = (first + 4) * kPageTokens < job.tokens ? pages + 4 : pages;
    const uint32_t* q = job.q + row * words;
    zero_tile<c00>(), zero_tile<c01>(), zero_tile<c10>(), zero_tile<c11>();
    for (int64_t w = 0; w < words; w += kTileWords, q += kTileWords) {
      const bool is_last = w + kTileWords == words;
      const uint8_t* const* next = is_last ? following : pages;
      const int64_t at = 64 * w, next_at = is_last ? 0 : at + 64 * kTileWords;
      load_tile<a0>(q, q_bytes);
      if (kTwo) load_tile<a1>(q + kTileRows * words, q_bytes);
      if (!kTwo) fetch_tile(next[0] + next_at);
      load_rows<b0, true>(pages[0] + at, 64), add_bf16<c00, a0, b0>();
      if (kTwo) add_bf16<c10, a1, b0>();
      if (!kTwo) fetch_tile(next[1] + next_at);
      load_rows<b1, true>(pages[1] + at, 64), add_bf16<c01, a0, b1>();
      if (kTwo) add_bf16<c11, a1, b1>();
      if (kTwo) continue;
      fetch_tile(next[2] + next_at);
      load_rows<b0, true>(pages[2] + at, 64), add_bf16<c10, a0, b0>();
      fetch_tile(next[3] + next_at);
      load_rows<b1, true>(pages[3] + at, 64), add_bf16<c11, a0, b1>();
    }
    float* to = scores + first * kPageTokens;
    float* next = to + (kTwo ? kTileRows * kLatentScores : 2 * kPageTokens);
    store_tile<c00>(to, kScoreBytes), store_tile<c01>(to + kPageTokens, kScoreBytes);
    store_tile<c10>(next, kScoreBytes), store_tile<c11>(next + kPageTokens, kScoreBytes);
  }
}

// Masks the scores behind a row's `tokens` tokens in `pairs` pairs of pages, and returns the maximum. That of all rows is
// found before the first weight: a row's own would be waited for.
GALLEY_INLINE float mask_latents(float* row, int64_t tokens, int64_t pairs) {
  for (int64_t i = tokens / kPageTokens; i < 2 * pairs; i++) {
    const Int counts = lane_numbers() < all(static_cast<int32_t>(tokens - i * kPageTokens));
    float* s = row + i * kPageTokens;
    store(s, select(counts, load(s), all(-__builtin_inff())));
  }
  Float even = load(row), odd = load(row + kPageTokens);
  for (int64_t i = 1; i < pairs; i++) {
    even = max(even, load(row + 2 * i * kPageTokens));
    odd = max(odd, load(row + (2 * i + 1) * kPageTokens));
  }
  return max_lane(max(even, odd));
}

// Scores of a row whose state has their maximum to weights of `pairs` pairs of pages: sixteen words of each pair, tokens
// t and t + 16 in a word. The partial sums go to the state.
GALLEY_INLINE void weigh_latents(const AttentionShape& shape, float* row, int64_t pairs,
                                 float* state) {
  const Float scale = all(shape.scale), minus_m = all(-state[0]);
  alignas(64) static const uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,
                                               21, 6, 22, 7, 23, 8,  24, 9,  25, 10, 26,
                                               11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i in_words = _mm512_load_si512(order);
  Float sums = zero();
  for (int64_t i = 0; i < pairs; i++) {
    const float* s = row + 2 * i * kPageTokens;
    const Float low = exp2_nonpositive(fma(load(s), scale, minus_m));
    const Float high = exp2_nonpositive(fma(load(s + kPageTokens), scale, minus_m));
    sums = sums + (low + high);
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high.part[0], low.part[0]);
    _mm512_storeu_si512(row + i * kTileWords, _mm512_permutexvar_epi16(in_words, both));
  }
  store(state + 16, sums);
}

// A tile of words in memory, turned.
GALLEY_INLINE void turn(const float* from, int64_t from_stride, float* to, int64_t to_stride,
                        int64_t rows) {
  WordLine line[kTileRows];
  _Pragma("GCC unroll 16") for (int i = 0; i < kTileRows; i++) {
    memcpy(&line[i], from + i * from_stride, 64);
  }
  exchange<8>(line);
  exchange<4>(line);
  exchange<2>(line);
  exchange<1>(line);
  _Pragma("GCC unroll 16") for (int i = 0; i < kTileRows; i++) {
    if (i < rows) memcpy(to + i * to_stride, &line[i], 64);
  }
}

// Sixteen dimensions of V^T from eight lines of each of two pages, of whose tokens `tokens` exist: memory behind
// the sequence's last one may hold NaN.
GALLEY_INLINE void turn_keys(const uint8_t* low, const uint8_t* high, int64_t tokens, int32_t* to) {
  const Int low_counts = lane_numbers() < all(static_cast<int32_t>(tokens));
  const Int high_counts = lane_numbers() < all(static_cast<int32_t>(tokens - kPageTokens));
  _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++, to += 2 * kLanes) {
    const Int a = load(reinterpret_cast<const int32_t*>(low + 64 * i)) & low_counts;
    const Int b = load(reinterpret_cast<const int32_t*>(high + 64 * i)) & high_counts;
    store(to, (a & all(0xffff)) | shift_left<16>(b));
    store(to + kLanes, shift_right<16>(a) | (b & all(static_cast<int32_t>(0xffff0000))));
  }
}

// V^T of 32 dimensions for pairs of pages, made while the first rows are computed: of all pairs if more rows
// follow, of two otherwise.
struct LatentValues {
  alignas(64) int32_t tiles[kMostPairs][2][kTileNumbers];
  const LatentAttention& job;
  int64_t mask;

  explicit LatentValues(const LatentAttention& job)
      : job(job), mask(job.rows > 2 * kTileRows ? kMostPairs - 1 : 1) {}
  GALLEY_INLINE void make(int64_t pair, int64_t dim) {
    const int64_t tokens = job.tokens - pair * 2 * kPageTokens;
    for (int64_t i = 0; i < 2; i++, dim += kLanes) {
      turn_keys(job.pages[2 * pair] + 32 * dim, job.pages[2 * pair + 1] + 32 * dim, tokens,
                tiles[pair & mask][i]);
    }
  }
};

// Results of one or two blocks of rows in 32 dimensions. Weights of many rows stay out of the L1 cache, so that the values
// stay in it.
template <bool kTwo>
GALLEY_INLINE void add_latents(const AttentionShape& shape, const LatentAttention& job, int64_t row,
                               int64_t pairs, int64_t dim, LatentValues& values) {
  const float* weights = job.scores + row * kLatentScores;
  zero_tile<c00>(), zero_tile<c01>();
  if (kTwo) zero_tile<c10>(), zero_tile<c11>();
  if (row == 0) values.make(0, dim);
  for (int64_t i = 0; i < pairs; i++, weights += kTileWords) {
    if (row == 0 && i + 1 < pairs) values.make(i + 1, dim);
    const auto& tiles = values.tiles[i & values.mask];
    load_rows<b0, kTwo>(weights, kScoreBytes);
    if (kTwo) load_rows<b1, true>(weights + kTileRows * kLatentScores, kScoreBytes);
    load_tile<a0>(tiles[0], kTileBytes), add_bf16<c00, a0, b0>();
    if (kTwo) add_bf16<c10, a0, b1>();
    load_tile<a1>(tiles[1], kTileBytes), add_bf16<c01, a1, b0>();
    if (kTwo) add_bf16<c11, a1, b1>();
  }
  alignas(64) float sums[4][kTileNumbers];
  store_tile<c00>(sums[0], kTileBytes), store_tile<c01>(sums[1], kTileBytes);
  if (kTwo) store_tile<c10>(sums[2], kTileBytes), store_tile<c11>(sums[3], kTileBytes);
  const int64_t size = shape.state_size();
  for (int i = 0; i < (kTwo ? 4 : 2); i++) {
    const int64_t first = row + i / 2 * kTileRows;
    turn(sums[i], kTileWords, job.state + first * size + 32 + dim + i % 2 * kLanes, size,
         job.rows - first);
  }
}

void attend_latents(const AttentionShape& shape, const LatentAttention& job) {
  const int64_t pairs = (job.tokens + 2 * kPageTokens - 1) / (2 * kPageTokens);
  LatentValues values(job);
  configure_tiles(kTileRows, kTileRows);
  for (int64_t row = 0; row < job.rows; row += 2 * kTileRows) {
    if (row + kTileRows < job.rows) {
      score_latents<true>(shape, job, row);
    } else {
      score_latents<false>(shape, job, row);
    }
  }
  const int64_t size = shape.state_size();
  for (int64_t row = 0; row < job.rows; row += kTileRows) {
    const int64_t end = row + kTileRows < job.rows ? row + kTileRows : job.rows;
    for (int64_t i = row; i < end; i++) {
      const int64_t tokens = job.last[i] - job.start;
      job.state[i * size] = shape.scale * mask_latents(job.scores + i * kLatentScores,
                                                       tokens < job.tokens ? tokens : job.tokens, pairs);
    }
    for (int64_t i = row; i < end; i++) {
      weigh_latents(shape, job.scores + i * kLatentScores, pairs, job.state + i * size);
    }
    float* scores = job.scores + row * kLatentScores;
    for (int64_t i = 0; i < pairs; i++, scores += kTileWords) {
      turn(scores, kLatentScores, scores, kLatentScores, kTileRows);
    }
  }
  for (int64_t dim = 0; dim < shape.head_dim; dim += 2 * kLanes) {
    for (int64_t row = 0; row < job.rows; row += 2 * kTileRows) {
      if (row + kTileRows < job.rows) {
        add_latents<true>(shape, job, row, pairs, dim, values);
      } else {
        add_latents<false>(shape, job, row, pairs, dim, values);
      }
    }
  }
  release_tiles();
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
