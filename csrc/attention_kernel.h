// Definitions for attention.h; compiled once per instruction set (variants.h).
#pragma once
#include "attention_rows.h"
#include "exchange_lanes.h"
#include "quantize_row.h"

namespace galley {
namespace GALLEY_VARIANT {

#if GALLEY_PARTS == 1
// The 128 magnitudes in registers, 32 in each.
struct CodeTable {
  explicit GALLEY_INLINE CodeTable(const uint16_t* magnitudes) {
    for (int i = 0; i < 4; i++) table[i] = _mm512_load_si512(magnitudes + 32 * i);
  }
  GALLEY_INLINE Int line(const uint8_t* codes) const {
    const __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)codes));
    const __mmask32 high = _mm512_test_epi16_mask(code, _mm512_set1_epi16(64));
    const __m512i low = _mm512_permutex2var_epi16(table[0], code, table[1]);
    const __m512i both = _mm512_mask_blend_epi16(
        high, low, _mm512_permutex2var_epi16(table[2], code, table[3]));
    const __m512i sign = _mm512_slli_epi16(code, 8), mask = _mm512_set1_epi16((short)0x8000);
    return Int{{(IntPart)_mm512_ternarylogic_epi32(both, sign, mask, 0xf8)}};  // both | sign & mask
  }
  GALLEY_INLINE Int part(const uint8_t* codes, int n) const {
    uint8_t some[2 * kLanes] = {};
    memcpy(some, codes, 2 * n);
    return line(some);
  }
  __m512i table[4];
};
#else
struct CodeTable {
  explicit GALLEY_INLINE CodeTable(const uint16_t* magnitudes) : all(magnitudes) {}
  GALLEY_INLINE Int line(const uint8_t* codes) const {
    uint16_t number[2 * kLanes];
    for (int i = 0; i < 2 * kLanes; i++) {
      number[i] = static_cast<uint16_t>(all[codes[i] & 0x7f] | (codes[i] & 0x80) << 8);
    }
    Int r;
    memcpy(&r, number, sizeof r);
    return r;
  }
  GALLEY_INLINE Int part(const uint8_t* codes, int n) const {
    uint8_t some[2 * kLanes] = {};
    memcpy(some, codes, 2 * n);
    return line(some);
  }
  const uint16_t* all;
};
#endif

// Lines of numbers, which need no table.
struct Numbers {
  explicit GALLEY_INLINE Numbers(const uint16_t*) {}
  GALLEY_INLINE Int line(const uint8_t* p) const {
    return load(reinterpret_cast<const int32_t*>(p));
  }
  GALLEY_INLINE Int part(const uint8_t* p, int n) const {
    return load_part(reinterpret_cast<const int32_t*>(p), n);
  }
};

// Multiplication of one 32-bit word of q or p with a line of K or V.
struct Bf16Words {
  using Table = Numbers;
  static constexpr int kTokens = 2;  // tokens per word of p
  static constexpr int kLine = 64;   // bytes of a line
  static GALLEY_INLINE Float add(const Float& acc, uint32_t word, const Int& line) {
    return dot_bf16(acc, all(static_cast<int32_t>(word)), line);
  }
};
struct CodeWords : Bf16Words {
  using Table = CodeTable;
  static constexpr int kLine = 32;
};
struct F32Words {
  using Table = Numbers;
  static constexpr int kTokens = 1;
  static constexpr int kLine = 64;
  static GALLEY_INLINE Float add(const Float& acc, uint32_t word, const Int& line) {
    return fma(as_float(all(static_cast<int32_t>(word))), as_float(line), acc);
  }
};

// Prefetch of the next tile while this one is computed: a few lines at every step of the loops, in
// the order of their addresses, the first half during the scores. Returns the address of the byte
// at `offset` among all of them; K and V of a page's head follow each other.
GALLEY_INLINE const uint8_t* ahead_at(const RowBlock& b, int64_t offset) {
  const int64_t per_page = 2 * b.shape->half_bytes;
  int page = 0;
  while (offset >= per_page && page < kTilePages - 1) offset -= per_page, page++;
  return b.tile->ahead[page] + offset;
}

// A range of the words of a query.
struct Words {
  int64_t begin, end;
};

// scores[r][16 * page ..] of P pages, of some words after those before them: one register per row and
// page, one line of K per step.
template <class W, int R, int P, bool Ahead>
GALLEY_INLINE void score_pages(RowBlock& b, int page, const Words& part) {
  const int64_t words = b.shape->words;
  const uint32_t* q = b.tile->q + b.first * words;
  const typename W::Table table(b.shape->magnitudes);
  const uint8_t* k[P];
  for (int i = 0; i < P; i++) k[i] = b.tile->pages[page + i];
  Float acc[R][P];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int i = 0; i < P; i++) {
      acc[r][i] = part.begin == 0 ? zero() : load(b.scores[r] + (page + i) * kPageTokens);
    }
  }
  const uint8_t* ahead = nullptr;
  for (int64_t w = part.begin; w < part.end; w++) {
    if (Ahead && (w == 0 || w == words / 2)) {
      ahead = ahead_at(b, (page * words + w * P) * W::kLine);
    }
    Int line[P];
#pragma GCC unroll 4
    for (int i = 0; i < P; i++) {
      line[i] = table.line(k[i] + w * W::kLine);
      if (Ahead) __builtin_prefetch(ahead + i * W::kLine);
    }
    if (Ahead) ahead += P * W::kLine;
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
      for (int i = 0; i < P; i++) acc[r][i] = W::add(acc[r][i], q[r * words + w], line[i]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int i = 0; i < P; i++) store(b.scores[r] + (page + i) * kPageTokens, acc[r][i]);
  }
}

template <class W, int R, bool Ahead>
GALLEY_INLINE void score_tile(RowBlock& b, const Words& part) {
  const int pages = static_cast<int>((b.tokens + kPageTokens - 1) / kPageTokens);
  int page = 0;
  if (kPages == 4 && pages > 2) {
    score_pages<W, R, kPages, Ahead>(b, 0, part);  // for three pages the fourth is computed and ignored
    return;
  }
  if (kPages > 1) {
    for (; page + 2 <= pages; page += 2) score_pages<W, R, 2, Ahead>(b, page, part);
  }
  for (; page < pages; page++) score_pages<W, R, 1, Ahead>(b, page, part);
  // The other pages get no scores; they are masked, but read.
  for (int r = 0; r < R && pages < kTilePages; r++) {
    memset(b.scores[r] + pages * kPageTokens, 0, (kTilePages - pages) * kPageTokens * 4);
  }
}

// o[r][dim .. dim + 16 N] = o * shrink + p V. Where N is 1, only `part` < 16 lanes are used.
template <class W, int R, int N, bool Ahead>
GALLEY_INLINE void add_values(RowBlock& b, int64_t dim, int part) {
  constexpr int kWordsPerPage = kPageTokens / W::kTokens;
  constexpr int kLane = W::kLine / kLanes;  // bytes
  const int64_t row_bytes = b.shape->value_row * W::kLine / 64;
  const typename W::Table table(b.shape->magnitudes);
  Float acc[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      acc[r][i] = load(b.state(r) + 32 + dim + i * kLanes) * all(b.shrink[r]);
    }
  }
  // Stop at the last token: memory past the sequence's end may hold NaN, and 0 * NaN is not 0.
  const int words = static_cast<int>(b.tokens / W::kTokens);
  const bool odd = b.tokens % W::kTokens != 0;
  const uint8_t* v = nullptr;
  const uint8_t* ahead = nullptr;
  const int64_t ahead_start =
      4 * b.shape->half_bytes + dim / kLanes * (kTileTokens / W::kTokens) * W::kLine;
  for (int w = 0; w < words + odd; w++) {
    if (w % kWordsPerPage == 0) {
      v = b.tile->values[w / kWordsPerPage] + dim * kLane;
      if (Ahead) ahead = ahead_at(b, ahead_start + w * N * W::kLine);
    }
    Int line[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      line[i] = N == 1 ? table.part(v, part) : table.line(v + i * W::kLine);
      if (Ahead) __builtin_prefetch(ahead + i * W::kLine);
      if (w == words) line[i] = line[i] & all(0x0000ffff);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
      for (int i = 0; i < N; i++) acc[r][i] = W::add(acc[r][i], b.p[r][w], line[i]);
    }
    v += row_bytes;
    if (Ahead) ahead += N * W::kLine;
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) store(b.state(r) + 32 + dim + i * kLanes, acc[r][i]);
  }
}

template <class W, int R, bool Ahead> GALLEY_INLINE void value_tile(RowBlock& b) {
  const int64_t dims = b.shape->head_dim;
  int64_t d = 0;
  if (kSlice > 1) {
    for (; d + kSlice * kLanes <= dims; d += kSlice * kLanes) {
      add_values<W, R, kSlice, Ahead>(b, d, kLanes);
    }
  }
  for (; d < dims; d += kLanes) {
    add_values<W, R, 1, Ahead>(b, d, dims - d < kLanes ? static_cast<int>(dims - d) : kLanes);
  }
}

// The phases of a block's rows to compute: all, or those on either side of the softmax.
enum class Part { all, scores, values };
template <class W, Part part, bool Ahead, int R> void attend_rows(RowBlock& b) {
  if (part != Part::values) score_tile<W, R, Ahead>(b, {0, b.shape->words});
  if (part == Part::all) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const float m = new_maximum(b, r);
      weigh_row<W::kTokens>(b, r, m, exp2_one(b.state(r)[0] - m));
    }
  }
  if (part != Part::scores) value_tile<W, R, Ahead>(b);
}

template <class W, Part part, bool Ahead> GALLEY_INLINE void attend_block(RowBlock& b) {
  switch (b.rows) {
    case 1: return attend_rows<W, part, Ahead, 1>(b);
    case 2: return attend_rows<W, part, Ahead, 2>(b);
#if GALLEY_PARTS == 1
    case 3: return attend_rows<W, part, Ahead, 3>(b);
    case 4: return attend_rows<W, part, Ahead, 4>(b);
    case 5: return attend_rows<W, part, Ahead, 5>(b);
    case 6: return attend_rows<W, part, Ahead, 6>(b);
#endif
  }
}

// Where a tile has many rows, the exponentials of two full blocks are computed between all their
// scores and all their values, which hides each row's latencies. The maxima come first, and one
// exponential gives `shrink` of sixteen rows.
template <class W> GALLEY_INLINE void weigh_two(RowBlock (&two)[2]) {
  static_assert(2 * kRows <= kLanes, "");
  float m[kLanes], fall[kLanes] = {}, shrink[kLanes];
  for (int i = 0; i < 2 * kRows; i++) {
    RowBlock& b = two[i / kRows];
    m[i] = new_maximum(b, i % kRows);
    fall[i] = b.state(i % kRows)[0] - m[i];
  }
  store(shrink, exp2_nonpositive(load(fall)));
  for (int i = 0; i < 2 * kRows; i++) weigh_row<W::kTokens>(two[i / kRows], i % kRows, m[i], shrink[i]);
}

template <class W, Part part> GALLEY_INLINE void attend_block(RowBlock& b, bool ahead) {
  if (W::kTokens == 2 && ahead) return attend_block<W, part, true>(b);
  attend_block<W, part, false>(b);
}

template <class W>
GALLEY_INLINE void attend(const AttentionShape& shape, const AttentionTile& tile) {
  RowBlock two[2];
  two[0].shape = two[1].shape = &shape;
  two[0].tile = two[1].tile = &tile;
  bool ahead = tile.ahead[0] != nullptr;  // the first block prefetches the next tile
  int64_t row = 0;
  for (; tile.rows - row >= 2 * kRows; ahead = false) {
    for (RowBlock& b : two) row += b.take(row);
    attend_block<W, Part::scores>(two[0], ahead);
    attend_block<W, Part::scores>(two[1], false);
    weigh_two<W>(two);
    attend_block<W, Part::values>(two[0], ahead);
    attend_block<W, Part::values>(two[1], false);
  }
  for (; row < tile.rows; ahead = false) {
    row += two[0].take(row);
    attend_block<W, Part::all>(two[0], ahead);
  }
}

// The same phases for keys that the L1 cache does not hold: all rows go through a part of the words,
// and through a part of the dimensions, before the next. No bit depends on it.
constexpr int64_t kLongKey = 128, kKeyWords = 64, kLongBlocks = 4;

template <class W, int R> GALLEY_INLINE void score_rows(RowBlock& b, const Words& part) {
  if (b.rows == R) return score_tile<W, R, false>(b, part);
  if constexpr (R > 1) score_rows<W, R - 1>(b, part);
}
template <class W, int N, int R> GALLEY_INLINE void value_rows(RowBlock& b, int64_t dim, int part) {
  if (b.rows == R) return add_values<W, R, N, false>(b, dim, part);
  if constexpr (R > 1) value_rows<W, N, R - 1>(b, dim, part);
}

template <class W>
__attribute__((noinline)) void attend_long(const AttentionShape& shape, const AttentionTile& tile) {
  RowBlock blocks[kLongBlocks];
  const int64_t words = shape.words, dims = shape.head_dim;
  for (int64_t row = 0; row < tile.rows;) {
    int64_t count = 0;
    const bool last = tile.ahead[0] && row + kLongBlocks * kRows >= tile.rows;
    for (; count < kLongBlocks && row < tile.rows; count++) {
      blocks[count].shape = &shape;
      blocks[count].tile = &tile;
      row += blocks[count].take(row);
    }
    for (int64_t w = 0; w < words; w += kKeyWords) {
      const Words part{w, w + kKeyWords < words ? w + kKeyWords : words};
      for (int64_t i = 0; i < count; i++) score_rows<W, kRows>(blocks[i], part);
    }
    for (int64_t i = 0; i < count; i++) weigh_rows<W::kTokens>(blocks[i]);
    int64_t d = 0;
    for (; d + kSlice * kLanes <= dims; d += kSlice * kLanes) {
      if (last) prefetch_share(shape, tile, d / (kSlice * kLanes), dims / (kSlice * kLanes));
      for (int64_t i = 0; i < count; i++) value_rows<W, kSlice, kRows>(blocks[i], d, kLanes);
    }
    for (; d < dims; d += kLanes) {
      const int part = dims - d < kLanes ? static_cast<int>(dims - d) : kLanes;
      for (int64_t i = 0; i < count; i++) value_rows<W, 1, kRows>(blocks[i], d, part);
    }
  }
}

// Codes are converted again for each block of rows, so there should be few.
GALLEY_INLINE void attend_codes(const AttentionShape& shape, const AttentionTile& tile) {
  RowBlock b;
  b.shape = &shape;
  b.tile = &tile;
  bool ahead = tile.ahead[0] != nullptr;
  for (int64_t row = 0; row < tile.rows; ahead = false) {
    row += b.take(row);
    attend_block<CodeWords, Part::all>(b, ahead);
  }
}

void attend_tile(const AttentionShape& shape, const AttentionTile& tile) {
  if (tile.is_codes) return attend_codes(shape, tile);
  if (shape.words > kLongKey && tile.rows > kRows) {
    return shape.is_f32 ? attend_long<F32Words>(shape, tile) : attend_long<Bf16Words>(shape, tile);
  }
  if (shape.is_f32) {
    attend<F32Words>(shape, tile);
  } else {
    attend<Bf16Words>(shape, tile);
  }
}

void convert_codes(const uint16_t* magnitudes, const uint8_t* codes, int64_t lines, uint8_t* out,
                   const uint8_t* ahead) {
  const CodeTable table(magnitudes);
  for (int64_t i = 0; i < lines; i++) {
    if (ahead && i % 2 == 0) __builtin_prefetch(ahead + i * 32);
    store(reinterpret_cast<int32_t*>(out + i * 64), table.line(codes + i * 32));
  }
}

// Of bf16, 64 bits of a line of K are elements 2d and 2d + 1 of two tokens; V has them by element.
GALLEY_INLINE LongLine by_element(const LongLine& x) {
#if GALLEY_PARTS == 1
  const __m512i order = _mm512_set4_epi32(0x0f0e0b0a, 0x0d0c0908, 0x07060302, 0x05040100);
  return (LongLine)_mm512_shuffle_epi8((__m512i)x, order);
#else
  const LongLine inner = x & (0x0000ffffffff0000ull - LongLine{});
  return (x & (0xffff00000000ffffull - LongLine{})) | ((inner >> 16) & (0x00000000ffff0000ull - LongLine{})) |
         ((inner << 16) & (0x0000ffff00000000ull - LongLine{}));
#endif
}

// Up to 8 lines of K, all of them where kLines is 8, to the same elements of eight rows of V.
template <int kLines>
GALLEY_INLINE void transpose_lines(const uint8_t* k, const AttentionShape& shape, uint8_t* v,
                                   int64_t lines) {
  const int64_t count = kLines == 8 ? 8 : lines;
  LongLine line[8] = {};
#pragma GCC unroll 8
  for (int64_t i = 0; i < count; i++) {
    memcpy(&line[i], k + i * 64, 64);
    line[i] = by_element(line[i]);
  }
  exchange<4>(line);
  exchange<2>(line);
  exchange<1>(line);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) memcpy(v + i * shape.value_row, &line[i], count * 8);
}

void values_of_keys(const AttentionShape& shape, const uint8_t* k, uint8_t* v) {
  const int64_t dims = shape.head_dim;
  if (shape.is_f32) {
    const float* from = reinterpret_cast<const float*>(k);
    float* to = reinterpret_cast<float*>(v);
    for (int64_t d = 0; d < dims; d++) {
      for (int t = 0; t < kPageTokens; t++) {
        to[t * shape.value_row / 4 + d] = from[d * kPageTokens + t];
      }
    }
    return;
  }
  const int64_t lines = dims / 2;  // of K; V has a row of them for each pair of tokens
  int64_t first = 0;
  for (; first + 8 <= lines; first += 8) transpose_lines<8>(k + first * 64, shape, v + first * 8, 8);
  if (first < lines) transpose_lines<1>(k + first * 64, shape, v + first * 8, lines - first);
}

void clear_states(const AttentionShape& shape, float* states, int64_t rows) {
  memset(states, 0, rows * shape.state_size() * sizeof(float));
  for (int64_t r = 0; r < rows; r++) states[r * shape.state_size()] = -__builtin_inff();
}

void merge_states(const AttentionShape& shape, float* into, const float* from, int64_t rows) {
  const int64_t size = shape.state_size();
  for (int64_t r = 0; r < rows; r++, into += size, from += size) {
    if (from[0] == -__builtin_inff()) continue;
    const float m = greater(into[0], from[0]);
    const float mine = exp2_one(into[0] - m), theirs = exp2_one(from[0] - m);
    into[0] = m;
    const float l = fma(sum(load(into + 16)), mine, sum(load(from + 16)) * theirs);
    store(into + 16, zero());
    into[16] = l;
    for (int64_t d = 32; d < size; d += kLanes) {
      store(into + d, fma(load(into + d), all(mine), load(from + d) * all(theirs)));
    }
  }
}

void finish_states(const AttentionShape& shape, const float* states, int64_t rows,
                   const float* sinks, float* out, int64_t stride) {
  const int64_t size = shape.state_size();
  for (int64_t r = 0; r < rows; r++, states += size, out += stride) {
    Float inverse = all(1.0f / sum(load(states + 16)));
    if (sinks) {
      const float sink = sinks[r] * 1.44269504f, m = greater(states[0], sink);
      const float mine = exp2_one(states[0] - m);
      inverse = all(mine / fma(sum(load(states + 16)), mine, exp2_one(sink - m)));
    }
    inverse = inverse * all(shape.value_scale);
    for (int64_t d = 0; d < shape.head_dim; d += kLanes) {
      const int64_t left = shape.head_dim - d;
      // + 0: the sign of a zero must not show whether p = 0 was added or skipped.
      const Float o = load(states + 32 + d) * inverse + zero();
      store_part(out + d, o, left < kLanes ? static_cast<int>(left) : kLanes);
    }
  }
}

void store_columns(const float* x, int64_t first, int64_t n, int64_t k, Kind kind, uint8_t* row) {
  if (!in_groups(kind) || n == k) {
    const int64_t size = kind == Kind::f32 ? 4 : kind == Kind::bf16 ? 2 : 0;
    store_row(x, n, kind, row + size * first);
    return;
  }
  store_groups(grouped_row(row, kind, k), first, n, x);
}

void pack_queries(const AttentionShape& shape, const void* q, bool q_is_f32, int64_t heads,
                  uint32_t* out) {
  const int64_t n = heads * shape.head_dim;
  if (q_is_f32 == shape.is_f32) {
    memcpy(out, q, n * (shape.is_f32 ? 4 : 2));
    return;
  }
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    if (q_is_f32) {
      const Float x = load_part(static_cast<const float*>(q) + i, part);
      store_bf16_part(reinterpret_cast<uint16_t*>(out) + i, x, part);
    } else {
      const Float x = load_bf16_part(static_cast<const uint16_t*>(q) + i, part);
      store_part(reinterpret_cast<float*>(out) + i, x, part);
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
