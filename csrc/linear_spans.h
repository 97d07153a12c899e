// Codes whose levels are floats, on rows of bf16; included by linear_kernel.h.
//
// Levels are multiplied as bf16, which holds E4M3 exactly; those of other tables are the sum of two
// bf16 where one does not hold them. Of each span, the values of one scale, the products are summed
// from 0; then y = fma(sum, scale, y). A few blocks of a panel become pairs of bf16, then all rows go
// through them: the order of additions does not depend on the rows.
#pragma once
#include "linear_lanes.h"
#include "linear_variants.h"
#include "quantize_row.h"

namespace galley {
namespace GALLEY_VARIANT {

#if GALLEY_PARTS == 1
constexpr int kSpanRows = 6, kSpanWide = 2;
#else
constexpr int kSpanRows = 2, kSpanWide = 1;
#endif
constexpr int64_t kPairWords = kGroup / 2;  // of a block

// The levels of a table in one or two terms.
struct LevelTerms {
  int terms = 1;
  bool float8;
  alignas(64) float value[2][256] = {};  // of each term: numbers of bf16
  alignas(64) uint16_t half[2][32] = {};  // the same as bf16, of 16 levels, twice

  explicit LevelTerms(const LinearJob& job) : float8(job.float8) {
    const int count = 1 << job.weight.bits();
    for (int i = 0; i < count; i++) {
      const float level = float_at(job.data + 4 * i);
      value[0][i] = float_from_bf16(bf16_from_float(level));
      const float rest = level - value[0][i];
      if (rest == rest) value[1][i] = float_from_bf16(bf16_from_float(rest));  // not of infinities
      if (value[1][i] != 0.0f) terms = 2;
    }
    for (int term = 0; term < 2; term++) {
      for (int i = 0; i < 32; i++) half[term][i] = bf16_from_float(value[term][i & 15]);
    }
  }
};

// Codes of four k of sixteen columns as two words of pairs: of the first two k and of the others.
struct PairWords {
  Int first, second;
};
// From lanes of four codes.
GALLEY_INLINE PairWords pairs_by_lookup(const float* value, const Int& codes) {
  const Int high = all(static_cast<int32_t>(0xffff0000u)), byte = all(255);
  Int bits[4];
  bits[0] = as_int(look_up(value, codes & byte));
  bits[1] = as_int(look_up(value, shift_right<8>(codes) & byte));
  bits[2] = as_int(look_up(value, shift_right<16>(codes) & byte));
  bits[3] = as_int(look_up(value, shift_right<24>(codes)));
  return {shift_right<16>(bits[0]) | (bits[1] & high), shift_right<16>(bits[2]) | (bits[3] & high)};
}

#if GALLEY_PARTS == 1
// The middle two of four bytes change places: then 16 bits hold codes k and k + 2, or k + 1 and k + 3.
GALLEY_INLINE __m512i by_twos(const Int& codes) {
  const __m512i order = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  return _mm512_shuffle_epi8((__m512i)codes.part[0], order);
}
// E4M3 in the low byte of 16 bits: its exponent has a bias 120 smaller; subnormals become normal.
GALLEY_INLINE Int float8_pair(const __m512i codes) {
  const __m512i magnitude = _mm512_and_si512(codes, _mm512_set1_epi16(127));
  // 2^-9 .. 7 * 2^-9
  const __m512i subnormal = _mm512_broadcast_i32x4(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  __m512i bits = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  const __mmask32 small = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
  bits = _mm512_mask_permutexvar_epi16(bits, small, magnitude, subnormal);
  const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(127));
  bits = _mm512_mask_mov_epi16(bits, nan, _mm512_set1_epi16(0x7fc0));
  const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(codes, 8), _mm512_set1_epi16(-32768));
  return Int{{(IntPart)_mm512_or_si512(bits, sign)}};
}
GALLEY_INLINE PairWords float8_pairs(const LevelTerms&, const Int& codes) {
  const __m512i twos = by_twos(codes);
  return {float8_pair(twos), float8_pair(_mm512_srli_epi16(twos, 8))};
}
// Nibbles: of steps j (low) and j + 4 (high). Only the lowest five bits of an index count, and the
// table has its sixteen numbers twice.
GALLEY_INLINE void nibble_pairs(const LevelTerms& levels, int term, const Int& codes,
                                PairWords (&steps)[2]) {
  const __m512i table = _mm512_load_si512(levels.half[term]), twos = by_twos(codes);
  auto at = [&](const __m512i index) __attribute__((always_inline)) {
    return Int{{(IntPart)_mm512_permutexvar_epi16(index, table)}};
  };
  steps[0] = {at(twos), at(_mm512_srli_epi16(twos, 8))};
  steps[1] = {at(_mm512_srli_epi16(twos, 4)), at(_mm512_srli_epi16(twos, 12))};
}
#else
GALLEY_INLINE PairWords float8_pairs(const LevelTerms& levels, const Int& codes) {
  return pairs_by_lookup(levels.value[0], codes);
}
GALLEY_INLINE void nibble_pairs(const LevelTerms& levels, int term, const Int& codes,
                                PairWords (&steps)[2]) {
  const Int low = all(0x0f0f0f0f);
  steps[0] = pairs_by_lookup(levels.value[term], codes & low);
  steps[1] = pairs_by_lookup(levels.value[term], shift_right<4>(codes) & low);
}
#endif

// A block of codes as words of pairs [16][terms][32 columns].
inline void expand_pairs(const WeightLayout& w, const LevelTerms& levels, const uint8_t* codes,
                         int32_t* words_of_pairs) {
  const int64_t line = levels.terms * kPanel;
  auto put = [&](int64_t step, int term, int half, const PairWords& pairs) __attribute__((always_inline)) {
    int32_t* at = words_of_pairs + 2 * step * line + term * kPanel + half * kLanes;
    store(at, pairs.first);
    store(at + line, pairs.second);
  };
  const bool nibbles = w.format == Format::i4;
  for (int half = 0; half < kHalves; half++) {
    for (int j = 0; j < (nibbles ? 4 : 8); j++) {
      const Int four = words(codes + (j * kHalves + half) * 64);
      for (int term = 0; term < levels.terms; term++) {
        if (nibbles) {
          PairWords steps[2];
          nibble_pairs(levels, term, four, steps);
          put(j, term, half, steps[0]);
          put(j + 4, term, half, steps[1]);
        } else if (levels.float8) {
          put(j, term, half, float8_pairs(levels, four));
        } else {
          put(j, term, half, pairs_by_lookup(levels.value[term], four));
        }
      }
    }
  }
}

// Blocks [block, end) of a panel, expanded: whole spans, or a part of one.
struct SpanPiece {
  const int32_t* pairs;
  const float* scales;  // [spans of the piece][32]
  int64_t block, end, span;
  bool begins, ends;  // its (first, last) span
  int64_t k, x_bytes;
  const uint8_t* x;  // the first row
  float *y, *sums;   // [rows][32]; of the span that is not complete
};

template <int kTerms> struct Spans {
  template <int R> struct Rows {
    static void run(const SpanPiece& p) {
      for (int half = 0; half < kHalves; half += kSpanWide) {
        Float y[R][kSpanWide], acc[R][kSpanWide];
        each([&](int r, int c) { y[r][c] = p.block ? load(p.y + at(r, half, c)) : zero(); });
        const float* scales = p.scales + half * kLanes;
        const int32_t* pairs = p.pairs + half * kLanes;
        for (int64_t block = p.block; block < p.end; block += p.span, scales += kPanel) {
          const int64_t last = block + p.span < p.end ? block + p.span : p.end;
          each([&](int r, int c) { acc[r][c] = p.begins ? zero() : load(p.sums + at(r, half, c)); });
          pairs = sum(p, block * kGroup, last * kGroup < p.k ? last * kGroup : p.k, pairs, acc);
          if (p.ends) {
            each([&](int r, int c) { y[r][c] = fma(acc[r][c], load(scales + c * kLanes), y[r][c]); });
          } else {
            each([&](int r, int c) { store(p.sums + at(r, half, c), acc[r][c]); });
          }
        }
        each([&](int r, int c) { store(p.y + at(r, half, c), y[r][c]); });
      }
    }

   private:
    static GALLEY_INLINE int64_t at(int r, int half, int c) { return r * kPanel + (half + c) * kLanes; }
    template <class Use> static GALLEY_INLINE void each(const Use& use) {
      _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {
        _Pragma("GCC unroll 2") for (int c = 0; c < kSpanWide; c++) use(r, c);
      }
    }
    // acc += the products of values [begin, end) of K.
    static GALLEY_INLINE const int32_t* sum(const SpanPiece& p, int64_t begin, int64_t end,
                                            const int32_t* pairs, Float (&acc)[R][kSpanWide]) {
      RowPointers<R> rows(p.x + 2 * begin, p.x_bytes);
      const int64_t whole = (end - begin) / 2;
      for (int64_t i = 0; i < whole; i++, rows.advance(4), pairs += kTerms * kPanel) {
        add(pairs, acc, [&](int r) __attribute__((always_inline)) { return word_at(rows[r]); });
      }
      if ((end - begin) % 2) {  // the missing one is 0
        add(pairs, acc, [&](int r) __attribute__((always_inline)) {
          uint16_t last;
          memcpy(&last, rows[r], 2);
          return static_cast<int32_t>(last);
        });
      }
      return pairs;
    }
    template <class Word>
    static GALLEY_INLINE void add(const int32_t* pairs, Float (&acc)[R][kSpanWide], const Word& word) {
      Int column[kTerms][kSpanWide];
      _Pragma("GCC unroll 2") for (int term = 0; term < kTerms; term++) {
        _Pragma("GCC unroll 2") for (int c = 0; c < kSpanWide; c++) {
          column[term][c] = load(pairs + term * kPanel + c * kLanes);
        }
      }
      _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {
        const Int x = all(word(r));
        _Pragma("GCC unroll 2") for (int term = 0; term < kTerms; term++) {
          _Pragma("GCC unroll 2") for (int c = 0; c < kSpanWide; c++) {
            acc[r][c] = dot_bf16(acc[r][c], x, column[term][c]);
          }
        }
      }
    }
  };
};

template <int kTerms, int R> void run_spans(int rows, const SpanPiece& piece) {
  if (rows == R) return Spans<kTerms>::template Rows<R>::run(piece);
  if constexpr (R > 1) run_spans<kTerms, R - 1>(rows, piece);
}

// Panels of such codes on rows of bf16. `Blocks`: the rows of the tile in blocks of at most kSpanRows;
// `done(panel, row, rows, y)` is called with their sums.
template <class Blocks, class Done>
void span_panels(const LinearJob& job, int64_t panel, int64_t count, const Blocks& blocks,
                 uint8_t* scratch, const Done& done) {
  const WeightLayout& w = job.weight;
  const LevelTerms levels(job);
  const HeaderReader reader(w);
  const int64_t span = w.span_blocks(), in_all = w.blocks();
  const int64_t most = span < kExpandedBlocks ? kExpandedBlocks / span * span : kExpandedBlocks;
  int32_t* pairs = reinterpret_cast<int32_t*>(scratch);
  float* y = reinterpret_cast<float*>(pairs + kExpandedBlocks * kPairWords * 2 * kPanel);
  float* sums = y + kChunkRows * kPanel;
  alignas(64) float scales[kExpandedBlocks * kPanel];
  for (int64_t p = panel; p < panel + count; p++) {
    const uint8_t* codes = w.panel(job.data, p);
    for (int64_t block = 0; block < in_all;) {
      int64_t end = block + most < in_all ? block + most : in_all;
      const int64_t border = (block / span + 1) * span;
      if (span > most && end > border) end = border;
      for (int64_t b = block; b < end; b++) {
        if (b == block || b % span == 0) {
          for (int half = 0; half < kHalves; half++) {
            const Float scale = reader.scales<false>(codes + w.header_at(b), 0, half).scale;
            store(scales + (b - block) / span * kPanel + half * kLanes, scale);
          }
        }
        expand_pairs(w, levels, codes + w.block_at(b),
                     pairs + (b - block) * kPairWords * levels.terms * kPanel);
      }
      SpanPiece piece{pairs, scales, block, end, span, block % span == 0,
                      end % span == 0 || end == in_all, w.k, job.x_bytes, nullptr, nullptr, nullptr};
      blocks.each([&](int64_t, int64_t row, int rows) {
        const int64_t from = row - blocks.begin;
        piece.x = job.x + row * job.x_bytes, piece.y = y + from * kPanel;
        piece.sums = sums + from * kPanel;
        levels.terms == 1 ? run_spans<1, kSpanRows>(rows, piece)
                          : run_spans<2, kSpanRows>(rows, piece);
        if (end == in_all) done(p, row, rows, piece.y);
      });
      block = end;
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
