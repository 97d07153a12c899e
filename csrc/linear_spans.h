// Codes whose levels are floats, on rows of float32; included by linear_kernel.h.
//
// Of each span, the values of one scale, the products of level and x are summed from 0, even and odd k
// apart; then y = fma(even + odd, scale, y). A lone block of rows looks levels up in registers. For
// more, those of a few blocks of a panel are written to memory, then all rows go through them: the order
// of additions is the same.
#pragma once
#include "linear_lanes.h"
#include "linear_variants.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kSpanRows = GALLEY_PARTS == 1 ? 6 : 2;
constexpr int kSpanHalves = GALLEY_PARTS == 1 ? 2 : 1;  // of a panel, side by side
constexpr int64_t kSpanAhead = 4096;                    // bytes that a lone row block prefetches ahead

// Levels of four k, of sixteen columns.
struct Four {
  Float k[4];
};

#if GALLEY_PARTS == 1
GALLEY_INLINE Int all_bytes(int8_t x) { return Int{{(IntPart)_mm512_set1_epi8(x)}}; }
GALLEY_INLINE Int shift_right_pairs_by_3(const Int& a) {
  return Int{{(IntPart)_mm512_srli_epi16((__m512i)a.part[0], 3)}};
}
// Bytes of `a` where those of `of` equal `to`, else of `b`.
GALLEY_INLINE Int where_equal(const Int& of, const Int& to, const Int& a, const Int& b) {
  const __mmask64 mask = _mm512_cmpeq_epi8_mask((__m512i)of.part[0], (__m512i)to.part[0]);
  return Int{{(IntPart)_mm512_mask_mov_epi8((__m512i)b.part[0], mask, (__m512i)a.part[0])}};
}
// Bytes low, high to 16 bits, in lanes of k, k + 1 and of k + 2, k + 3.
GALLEY_INLINE void pairs_of_bytes(const Int& low, const Int& high, Int* first, Int* second) {
  const __m512 a = (__m512)_mm512_unpacklo_epi8((__m512i)low.part[0], (__m512i)high.part[0]);
  const __m512 b = (__m512)_mm512_unpackhi_epi8((__m512i)low.part[0], (__m512i)high.part[0]);
  first->part[0] = (IntPart)_mm512_shuffle_ps(a, b, 0x88);
  second->part[0] = (IntPart)_mm512_shuffle_ps(a, b, 0xdd);
}
#elif GALLEY_PARTS == 2
GALLEY_INLINE Int all_bytes(int8_t x) {
  return Int{{(IntPart)_mm256_set1_epi8(x), (IntPart)_mm256_set1_epi8(x)}};
}
GALLEY_INLINE Int shift_right_pairs_by_3(const Int& a) {
  Int r;
  GALLEY_EACH_PART r.part[i] = (IntPart)_mm256_srli_epi16((__m256i)a.part[i], 3);
  return r;
}
GALLEY_INLINE Int where_equal(const Int& of, const Int& to, const Int& a, const Int& b) {
  Int r;
  GALLEY_EACH_PART {
    const __m256i mask = _mm256_cmpeq_epi8((__m256i)of.part[i], (__m256i)to.part[i]);
    r.part[i] = (IntPart)_mm256_blendv_epi8((__m256i)b.part[i], (__m256i)a.part[i], mask);
  }
  return r;
}
GALLEY_INLINE void pairs_of_bytes(const Int& low, const Int& high, Int* first, Int* second) {
  GALLEY_EACH_PART {
    const __m256 a = (__m256)_mm256_unpacklo_epi8((__m256i)low.part[i], (__m256i)high.part[i]);
    const __m256 b = (__m256)_mm256_unpackhi_epi8((__m256i)low.part[i], (__m256i)high.part[i]);
    first->part[i] = (IntPart)_mm256_shuffle_ps(a, b, 0x88);
    second->part[i] = (IntPart)_mm256_shuffle_ps(a, b, 0xdd);
  }
}
#endif

#if GALLEY_PARTS < 4
// E4M3 as the upper halves of float32, byte by byte. Of seeeemmm, the higher byte of a normal number
// follows from its exponent (whose bias becomes 120 larger), the lower one from the last four bits; both
// of a subnormal one, which becomes normal, from those four bits.
GALLEY_INLINE void float8_pairs(const Int& codes, Int* first, Int* second) {
  alignas(16) static const uint8_t normal_low[16] = {0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70,
                                                     0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0};
  alignas(16) static const uint8_t normal_high[16] = {0x3c, 0x3c, 0x3d, 0x3d, 0x3e, 0x3e, 0x3f, 0x3f,
                                                      0x40, 0x40, 0x41, 0x41, 0x42, 0x42, 0x43, 0x43};
  // 0, 2^-9, 2^-8, 1.5 * 2^-8, 2^-7 .. 1.75 * 2^-7
  alignas(16) static const uint8_t small_low[16] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60};
  alignas(16) static const uint8_t small_high[16] = {0x00, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c};
  const Int last = codes & all_bytes(0x0f), exponent = codes & all_bytes(0x78);
  const Int magnitude = codes & all_bytes(0x7f), none = all_bytes(0);
  const Int low = where_equal(exponent, none, look_up(small_low, last), look_up(normal_low, last));
  Int high = where_equal(exponent, none, look_up(small_high, last),
                         look_up(normal_high, shift_right_pairs_by_3(exponent)));
  high = where_equal(magnitude, all_bytes(0x7f), magnitude, high);  // NaN: 0x7ff0
  high = high | (codes & all_bytes(-128));
  pairs_of_bytes(low, high, first, second);
}
GALLEY_INLINE Four float8_four(const Int& codes) {
  Int first, second;
  float8_pairs(codes, &first, &second);
  const Int upper = all(static_cast<int32_t>(0xffff0000u));
  return {{as_float(shift_left<16>(first)), as_float(first & upper),
           as_float(shift_left<16>(second)), as_float(second & upper)}};
}
#endif

// How a line of 64 bytes, four codes or four times two of sixteen columns, becomes levels: a block has
// kLines of them for each half of the columns, line j with values 4 j + 16 i .. of the block, i < kSteps.
struct NibbleLevels {
  static constexpr int kLines = 4, kSteps = 2;
  template <int kStep> static GALLEY_INLINE Four make(const float* table, const Int& codes) {
    return {{look_up16(table, shift_right<4 * kStep>(codes)),
             look_up16(table, shift_right<8 + 4 * kStep>(codes)),
             look_up16(table, shift_right<16 + 4 * kStep>(codes)),
             look_up16(table, shift_right<24 + 4 * kStep>(codes))}};
  }
};
struct Float8Levels {
  static constexpr int kLines = 8, kSteps = 1;
  template <int> static GALLEY_INLINE Four make(const float* table, const Int& codes) {
#if GALLEY_PARTS < 4
    (void)table;
    return float8_four(codes);
#else
    return by_look_up(table, codes);
#endif
  }
  static GALLEY_INLINE Four by_look_up(const float* table, const Int& codes) {
    const Int byte = all(255);
    return {{look_up(table, codes & byte), look_up(table, shift_right<8>(codes) & byte),
             look_up(table, shift_right<16>(codes) & byte), look_up(table, shift_right<24>(codes))}};
  }
};
// 8 bits with any table.
struct ByteLevels {
  static constexpr int kLines = 8, kSteps = 1;
  template <int> static GALLEY_INLINE Four make(const float* table, const Int& codes) {
    return Float8Levels::by_look_up(table, codes);
  }
};

// A block of codes as levels [32 of k][32 columns].
template <class Levels>
void expand_levels(const float* table, const uint8_t* codes, float* levels) {
  for (int j = 0; j < Levels::kLines; j++) {
    for (int half = 0; half < kHalves; half++) {
      const Int line = words(codes + (j * kHalves + half) * 64);
      auto put = [&](int first, const Four& four) __attribute__((always_inline)) {
        float* to = levels + first * kPanel + half * kLanes;
        for (int i = 0; i < 4; i++) store(to + i * kPanel, four.k[i]);
      };
      put(4 * j, Levels::template make<0>(table, line));
      if (Levels::kSteps == 2) put(4 * j + 16, Levels::template make<1>(table, line));
    }
  }
}

// Blocks [block, end) of a panel: whole spans, or a part of one.
struct SpanPiece {
  const WeightLayout* weight;
  const HeaderReader* reader;
  const float* table;
  const uint8_t* panel;
  const float* levels;  // of the blocks, unless rows look them up themselves
  int64_t block, end, span;
  bool begins, ends;  // its (first, last) span
  int64_t x_bytes;
  const uint8_t* x;  // the first row
  float *y, *sums;   // [rows][32]; [rows][2][32], of the span that is not complete
};

// Rows on such a piece. `kLone`: without `levels`.
template <class Levels, bool kLone> struct Spans {
  template <int R> struct Rows {
    static void run(const SpanPiece& p) {
      for (int half = 0; half < kHalves; half += kSpanHalves) {
        Float y[R][kSpanHalves], acc[R][kSpanHalves][2];
        each([&](int r, int c) { y[r][c] = p.block ? load(p.y + at(r, half, c)) : zero(); });
        for (int64_t block = p.block; block < p.end; block += p.span) {
          const int64_t last = block + p.span < p.end ? block + p.span : p.end;
          const uint8_t* header = p.panel + p.weight->header_at(block);
          const int64_t entry = block % p.weight->span_blocks() / p.span;
          if (kLone && half == 0 && entry == 0) {
            prefetch_header(header + kSpanAhead, p.weight->header_bytes());
          }
          each([&](int r, int c) {
            float* sums = p.sums + 2 * r * kPanel + (half + c) * kLanes;
            for (int i = 0; i < 2; i++) acc[r][c][i] = p.begins ? zero() : load(sums + i * kPanel);
          });
          add(p, half, block, last, acc);
          if (p.ends) {
            Float scale[kSpanHalves];
            for (int c = 0; c < kSpanHalves; c++) {
              scale[c] = p.reader->template scales<false>(header, entry, half + c).scale;
            }
            each([&](int r, int c) {
              y[r][c] = fma(acc[r][c][0] + acc[r][c][1], scale[c], y[r][c]);
            });
          } else {
            each([&](int r, int c) {
              float* sums = p.sums + 2 * r * kPanel + (half + c) * kLanes;
              for (int i = 0; i < 2; i++) store(sums + i * kPanel, acc[r][c][i]);
            });
          }
        }
        each([&](int r, int c) { store(p.y + at(r, half, c), y[r][c]); });
      }
    }

   private:
    using Sums = Float[R][kSpanHalves][2];
    static GALLEY_INLINE int64_t at(int r, int half, int c) { return r * kPanel + (half + c) * kLanes; }
    template <class Use> static GALLEY_INLINE void each(const Use& use) {
      _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {
        _Pragma("GCC unroll 2") for (int c = 0; c < kSpanHalves; c++) use(r, c);
      }
    }
    static GALLEY_INLINE void prefetch_header(const uint8_t* from, int64_t bytes) {
      for (const uint8_t* end = from + bytes; from < end; from += 64) __builtin_prefetch(from);
    }
    // acc += the products of blocks [begin, end).
    static GALLEY_INLINE void add(const SpanPiece& p, int half, int64_t begin, int64_t end, Sums& acc) {
      const int64_t whole = p.weight->k / kGroup;
      const uint8_t* codes = p.panel + p.weight->block_at(begin) + half * 64;
      const float* levels = p.levels + half * kLanes;
      if (!kLone) levels += (begin - p.block) * kGroup * kPanel;
      RowPointers<R> x(p.x + begin * kGroup * 4, p.x_bytes);
      for (int64_t block = begin; block < end && block < whole; block++) {
        add_block(p, half, codes, levels, x, acc);
        codes += p.weight->block_bytes();
        if (!kLone) levels += kGroup * kPanel;
        x.advance(4 * kGroup);
      }
      if (end <= whole) return;
      alignas(64) uint8_t rest[R][4 * kGroup] = {};  // the missing ones are 0
      for (int r = 0; r < R; r++) {
        memcpy(rest[r], p.x + r * p.x_bytes + whole * kGroup * 4, p.weight->k % kGroup * 4);
      }
      add_block(p, half, codes, levels, RowPointers<R>(rest[0], 4 * kGroup), acc);
    }
    static GALLEY_INLINE void add_block(const SpanPiece& p, int half, const uint8_t* codes,
                                        const float* levels, RowPointers<R> x, Sums& acc) {
      for (int j = 0; j < Levels::kLines; j++, x.advance(16)) {
        Four four[2][kSpanHalves];
        _Pragma("GCC unroll 2") for (int c = 0; c < kSpanHalves; c++) {
          if (!kLone) break;
          const uint8_t* from = codes + (j * kHalves + c) * 64;
          const Int line = words(from);
          if (half == 0) __builtin_prefetch(from + kSpanAhead);
          if (half == 0 && kSpanHalves == 1) __builtin_prefetch(from + kSpanAhead + 64);
          four[0][c] = Levels::template make<0>(p.table, line);
          if (Levels::kSteps == 2) four[1][c] = Levels::template make<1>(p.table, line);
        }
        _Pragma("GCC unroll 2") for (int i = 0; i < Levels::kSteps; i++) {
          _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) {
            Float column[kSpanHalves];
            _Pragma("GCC unroll 2") for (int c = 0; c < kSpanHalves; c++) {
              column[c] = kLone ? four[i][c].k[k]
                                : load(levels + (4 * j + 16 * i + k) * kPanel + c * kLanes);
            }
            _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {
              const Float value = all(float_at(x[r] + 64 * i + 4 * k));
              _Pragma("GCC unroll 2") for (int c = 0; c < kSpanHalves; c++) {
                acc[r][c][k % 2] = fma(value, column[c], acc[r][c][k % 2]);
              }
            }
          }
        }
      }
    }
  };
};

template <class Levels, bool kLone, int R> void run_spans(int rows, const SpanPiece& piece) {
  if (rows == R) return Spans<Levels, kLone>::template Rows<R>::run(piece);
  if constexpr (R > 1) run_spans<Levels, kLone, R - 1>(rows, piece);
}

// A panel of such codes for several blocks of rows, a few blocks of K at a time. `levels`: memory for
// them; x, y and sums of the piece are those of all rows.
template <class Levels, class Blocks>
void expanded_spans(const Blocks& blocks, SpanPiece piece, float* levels) {
  const WeightLayout& w = *piece.weight;
  const int64_t span = piece.span, in_all = w.blocks();
  const int64_t most = span < kExpandedBlocks ? kExpandedBlocks / span * span : kExpandedBlocks;
  const uint8_t* x = piece.x;
  float *y = piece.y, *sums = piece.sums;
  for (int64_t block = 0; block < in_all;) {
    int64_t end = block + most < in_all ? block + most : in_all;
    const int64_t border = (block / span + 1) * span;
    if (span > most && end > border) end = border;
    for (int64_t b = block; b < end; b++) {
      expand_levels<Levels>(piece.table, piece.panel + w.block_at(b),
                            levels + (b - block) * kGroup * kPanel);
    }
    piece.block = block, piece.end = end;
    piece.begins = block % span == 0, piece.ends = end % span == 0 || end == in_all;
    blocks.each([&](int64_t, int64_t row, int rows) {
      const int64_t from = row - blocks.begin;
      piece.x = x + row * piece.x_bytes, piece.y = y + from * kPanel;
      piece.sums = sums + 2 * from * kPanel;
      run_spans<Levels, false, kSpanRows>(rows, piece);
    });
    block = end;
  }
}

template <class Levels, class Blocks, class Done>
void span_panels(const LinearJob& job, int64_t panel, int64_t count, const Blocks& blocks,
                 uint8_t* scratch, const Done& done) {
  const WeightLayout& w = job.weight;
  const HeaderReader reader(w, job.data);
  float* levels = reinterpret_cast<float*>(scratch);
  float* y = levels + kExpandedBlocks * kGroup * kPanel;
  for (int64_t p = panel; p < panel + count; p++) {
    SpanPiece piece{&w, &reader, reinterpret_cast<const float*>(job.data), w.panel(job.data, p),
                    levels, 0, w.blocks(), w.scale_blocks(), true, true, job.x_bytes, job.x, y,
                    y + kChunkRows * kPanel};
    if (blocks.count == 1) {
      piece.x = job.x + blocks.begin * job.x_bytes;
      run_spans<Levels, true, kSpanRows>(static_cast<int>(blocks.end - blocks.begin), piece);
    } else {
      expanded_spans<Levels>(blocks, piece, levels);
    }
    blocks.each([&](int64_t, int64_t row, int rows) {
      done(p, row, rows, y + (row - blocks.begin) * kPanel);
    });
  }
}

// Panels of such codes on rows of float32. `Blocks`: the rows of the tile in blocks of at most kSpanRows;
// `done(panel, row, rows, y)` is called with their sums.
template <class Blocks, class Done>
void span_panels(const LinearJob& job, int64_t panel, int64_t count, const Blocks& blocks,
                 uint8_t* scratch, const Done& done) {
  if (job.weight.format == Format::i4) {
    span_panels<NibbleLevels>(job, panel, count, blocks, scratch, done);
  } else if (job.float8) {
    span_panels<Float8Levels>(job, panel, count, blocks, scratch, done);
  } else {
    span_panels<ByteLevels>(job, panel, count, blocks, scratch, done);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
