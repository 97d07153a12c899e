// Codes of four bits on rows of bf16, by AMX tiles; included by linear_amx.h.
//
// Levels, the codes less their zero, are exact in bf16; those of a table of floats are rounded to it. Of a
// part, the values of one scale (at most kPieceBlocks blocks of them), products are summed in the order of
// linear_amx.h; then y = fma(sum, scale, y), and with mins y = fma(sum of x, min, y). Up to three rows, for
// which expanding the levels would take longer than reading the codes, add the same numbers in the same
// order without tiles.
#pragma once
#include "linear_epilogue.h"
#include "tile_blocks.h"

namespace galley {
namespace GALLEY_VARIANT {

// The parts of a piece of a panel: blocks [block, block + count).
struct CodeParts {
  // Of the weight:
  int64_t span, of_scale, header_bytes, block_bytes;  // blocks of a header, and of a scale
  bool has_zeros;
  // Of the piece:
  int64_t block, count;
  const uint8_t* codes[kPieceBlocks];
  int parts, begin[kPieceBlocks + 1];  // of each part: its first block, from `block`
  alignas(64) float scales[kPieceBlocks][kPanel];
  alignas(64) float mins[kPieceBlocks][kPanel];
  alignas(64) uint8_t zeros[kPieceBlocks][kHalves][64];  // of each column four times, if any

  explicit CodeParts(const WeightLayout& w)
      : span(w.span_blocks()), of_scale(w.scale_blocks()), header_bytes(w.header_bytes()),
        block_bytes(w.block_bytes()), has_zeros(w.offset == Offset::zeros) {}

  template <bool kMins> void read(const HeaderReader& reader, const uint8_t* panel) {
    int64_t in_span = block % span, entry = in_span / of_scale, in_scale = in_span % of_scale;
    const uint8_t* header = panel + block / span * (header_bytes + span * block_bytes);
    const uint8_t* at = header + header_bytes + in_span * block_bytes;
    parts = 0;
    for (int i = 0; i < count; i++, in_span++, in_scale++, at += block_bytes) {
      if (in_span == span) {
        in_span = in_scale = entry = 0, header = at, at += header_bytes;
      } else if (in_scale == of_scale) {
        in_scale = 0, entry++;
      }
      codes[i] = at;
      if (i > 0 && in_scale > 0) continue;
      if (in_span == 0) __builtin_prefetch(header + kAhead);
      for (int half = 0; half < kHalves; half++) {
        const ScaleAndMin affine = reader.scales<kMins>(header, entry, half);
        store(scales[parts] + half * kLanes, affine.scale);
        if (kMins) store(mins[parts] + half * kLanes, affine.min);
        if (!has_zeros) continue;
        store(reinterpret_cast<int32_t*>(zeros[parts][half]), four_times(reader.zeros(header, entry, half)));
      }
      begin[parts++] = i;
    }
    begin[parts] = static_cast<int>(count);
  }
};

// Levels of a piece as bf16 [16 words][32 columns][2].
struct CodeLevels {
  alignas(64) uint8_t lines[kPieceBlocks][kTileWords * kWordBytes];
  alignas(64) uint16_t table[32];

  // With a zero for each scale the table has signed levels by their lowest five bits, else the levels of
  // codes, twice.
  explicit CodeLevels(const LinearJob& job) {
    const bool has_zeros = job.weight.offset == Offset::zeros, is_table = job.weight.table == CodeTable::floats;
    for (int i = 0; i < 32; i++) {
      const int level = has_zeros ? (i < 16 ? i : i - 32) : i % 16 - job.weight.zero;
      table[i] = bf16_from_float(is_table ? reinterpret_cast<const float*>(job.data)[i % 16]
                                          : static_cast<float>(level));
    }
  }
  void expand(const CodeParts& p) {
    for (int part = 0; part < p.parts; part++) {
      for (int i = p.begin[part]; i < p.begin[part + 1]; i++) {
        if (p.has_zeros) {
          expand_block<true>(p.codes[i], p.zeros[part], lines[i]);
        } else {
          expand_block<false>(p.codes[i], p.zeros[part], lines[i]);
        }
      }
    }
  }

 private:
  template <bool kZeros>
  GALLEY_INLINE void expand_block(const uint8_t* codes, const uint8_t (&zeros)[kHalves][64],
                                  uint8_t* to) const {
    const __m512i nibble = _mm512_set1_epi8(15);
    _Pragma("GCC unroll 8") for (int line = 0; line < 4 * kHalves; line++, codes += 64) {
      __m512i low = _mm512_loadu_si512(codes), high = _mm512_srli_epi32(low, 4);
      __builtin_prefetch(codes + kAhead);
      if (kZeros) {
        const __m512i zero = _mm512_load_si512(zeros[line % kHalves]);
        low = _mm512_sub_epi8(_mm512_and_si512(low, nibble), zero);
        high = _mm512_sub_epi8(_mm512_and_si512(high, nibble), zero);
      }
      uint8_t* at = to + (line / kHalves * 2 * kHalves + line % kHalves) * 64;
      put(low, at), put(high, at + 8 * kWordBytes);
    }
  }
  // Four levels of each of 16 columns.
  GALLEY_INLINE void put(const __m512i& levels, uint8_t* to) const {
    put_pair(levels, to), put_pair(_mm512_srli_epi32(levels, 16), to + kWordBytes);
  }
  // Those of bytes 0 and 1 of each lane, which begin its two halves.
  GALLEY_INLINE void put_pair(const __m512i& levels, uint8_t* to) const {
    const __m512i apart = _mm512_mask_blend_epi16(0xaaaaaaaau, levels, _mm512_slli_epi32(levels, 8));
    _mm512_store_si512(to, _mm512_permutexvar_epi16(apart, _mm512_load_si512(table)));
  }
};

// R rows (of which the tiles may have fewer) and one half of the columns; adds the piece to y [R][32].
// x: the rows at the piece's first block.
template <int R, bool kMins> struct CodeTiles {
  struct Sums {
    alignas(64) float dot[R][kLanes], x[R][kLanes];
  };

  // sums: [2], 0 where the tiles have no rows.
  static void add(const CodeParts& parts, const CodeLevels& levels, const uint8_t* x, int64_t x_bytes,
                  int half, Sums* sums, float* y) {
    Sums &even = sums[0], &odd = sums[1];
    Float acc[R];
    for (int r = 0; r < R; r++) acc[r] = load(y + r * kPanel);
    // Sums of a part are scaled while the tiles compute those of the next one.
    multiply<c00, c01>(parts, levels, x, x_bytes, half, 0, even);
    for (int i = 0; i < parts.parts; i += 2) {
      if (i + 1 < parts.parts) multiply<c10, c11>(parts, levels, x, x_bytes, half, i + 1, odd);
      scale(parts, half, i, even, acc);
      if (i + 1 == parts.parts) break;
      if (i + 2 < parts.parts) multiply<c00, c01>(parts, levels, x, x_bytes, half, i + 2, even);
      scale(parts, half, i + 1, odd, acc);
    }
    for (int r = 0; r < R; r++) store(y + r * kPanel, acc[r]);
  }

 private:
  // Tile b1 holds ones.
  template <Tile c, Tile c_x>
  static GALLEY_INLINE void multiply(const CodeParts& parts, const CodeLevels& levels, const uint8_t* x,
                                     int64_t x_bytes, int half, int part, Sums& sums) {
    zero_tile<c>();
    if (kMins) zero_tile<c_x>();
    for (int block = parts.begin[part]; block < parts.begin[part + 1]; block++) {
      load_tile<a0>(x + block * kTileBytes, x_bytes);
      load_tile<b0>(levels.lines[block] + half * 64, kWordBytes);
      add_bf16<c, a0, b0>();
      if (kMins) add_bf16<c_x, a0, b1>();
    }
    store_tile<c>(sums.dot, kLanes * 4);
    if (kMins) store_tile<c_x>(sums.x, kLanes * 4);
  }
  static GALLEY_INLINE void scale(const CodeParts& parts, int half, int part, const Sums& sums,
                                  Float (&acc)[R]) {
    const Float scale = load(parts.scales[part] + half * kLanes);
    const Float min = kMins ? load(parts.mins[part] + half * kLanes) : Float{};
    _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {
      acc[r] = fma(load(sums.dot[r]), scale, acc[r]);
      if (kMins) acc[r] = fma(load(sums.x[r]), min, acc[r]);
    }
  }
};

template <int R, bool kMins>
void code_tiles(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin, int64_t row_end) {
  using Tiles = CodeTiles<R, kMins>;
  const WeightLayout& w = job.weight;
  const HeaderReader reader(w, job.data);
  const int64_t blocks = w.blocks(), pieces = (blocks + kPieceBlocks - 1) / kPieceBlocks;
  const int64_t rows = row_end - row_begin, tile_rows = rows < R ? rows : R;
  // Tiles cannot be loaded from lines that are still being stored: a piece is expanded before the tiles
  // multiply with the one before it.
  CodeParts parts[2] = {CodeParts(w), CodeParts(w)};
  CodeLevels levels[2] = {CodeLevels(job), CodeLevels(job)};
  const auto expand = [&](int64_t number) {
    if (number == count * pieces) return;
    CodeParts& p = parts[number % 2];
    p.block = number % pieces * kPieceBlocks;
    p.count = blocks - p.block < kPieceBlocks ? blocks - p.block : kPieceBlocks;
    p.read<kMins>(reader, w.panel(job.data, panel + number / pieces));
    levels[number % 2].expand(p);
  };
  // The last rows overlap with those before them where they do not fit.
  const auto first_row = [&](int64_t done) {
    return done + tile_rows < row_end ? done : row_end - tile_rows;
  };
  typename Tiles::Sums sums[2] = {};
  alignas(64) float results[(kChunkRows + R) * kPanel], pair[kChunkRows * kPanel];
  alignas(64) uint16_t ones[kTileRows * kTileWords * 2];
  for (uint16_t& one : ones) one = bf16_from_float(1);
  expand(0);
  configure_tiles(static_cast<int>(tile_rows), static_cast<int>(tile_rows));
  load_tile<b1>(ones, kTileBytes);
  for (int64_t number = 0; number < count * pieces; number++) {
    const CodeParts& p = parts[number % 2];
    if (p.block == 0) memset(results, 0, round_up(rows, R) * kPanel * 4);
    expand(number + 1);
    for (int64_t done = row_begin; done < row_end; done += tile_rows) {
      const int64_t row = first_row(done);
      const uint8_t* x = job.x + row * job.x_bytes + p.block * kTileBytes;
      float* y = results + (done - row_begin) * kPanel;
      for (int half = 0; half < kHalves; half++) {
        Tiles::add(p, levels[number % 2], x, job.x_bytes, half, sums, y + half * kLanes);
      }
      if (p.block + p.count < blocks) continue;
      finish(job, panel + number / pieces, done, static_cast<int>(row + tile_rows - done),
             y + (done - row) * kPanel, pair + (done - row_begin) * kPanel);
    }
  }
  release_tiles();
}

// R rows and all columns of a block without tiles: sums of products, and of x. Rotated, the words of a lane
// have values 2 and 0, or 3 and 1, of its four in their lower bytes.
template <int R, bool kMins> struct FewRows {
  Float dot[R][kHalves] = {}, x_sum[R] = {};

  // x: the rows at the block.
  template <bool kZeros>
  GALLEY_INLINE void add(const CodeLevels& levels, const uint8_t* codes,
                         const uint8_t (&zeros)[kHalves][64], const uint8_t* x, int64_t x_bytes) {
    ParityPairs pairs[R];
    for (int r = 0; r < R; r++) pairs[r].read(x + r * x_bytes);
    const __m512i table = _mm512_load_si512(levels.table), nibble = _mm512_set1_epi8(15);
    for (int half = 0; half < kHalves; half++) {
      Float even[R] = {}, odd[R] = {};
      _Pragma("GCC unroll 8") for (int step = 0; step < 8; step++) {
        const uint8_t* line = codes + (step % 4 * kHalves + half) * 64;
        if (step < 4) __builtin_prefetch(line + kAhead);
        __m512i four = _mm512_loadu_si512(line);
        if (step >= 4) four = _mm512_srli_epi32(four, 4);
        if (kZeros) {
          four = _mm512_sub_epi8(_mm512_and_si512(four, nibble), _mm512_load_si512(zeros[half]));
        }
        const Int of_even = look_up(_mm512_ror_epi32(four, 16), table);
        const Int of_odd = look_up(_mm512_ror_epi32(four, 24), table);
        for (int r = 0; r < R; r++) {
          even[r] = dot_bf16(even[r], of_even, pairs[r].even(step));
          odd[r] = dot_bf16(odd[r], of_odd, pairs[r].odd(step));
        }
      }
      for (int r = 0; r < R; r++) dot[r][half] = dot[r][half] + (even[r] + odd[r]);
    }
    for (int r = 0; kMins && r < R; r++) {
      const Int ones = all(0x3f803f80);
      Float even{}, odd{};
      for (int step = 0; step < 8; step++) {
        even = dot_bf16(even, ones, pairs[r].even(step)), odd = dot_bf16(odd, ones, pairs[r].odd(step));
      }
      x_sum[r] = x_sum[r] + (even + odd);
    }
  }

 private:
  static GALLEY_INLINE Int look_up(const __m512i& codes, const __m512i& table) {
    return Int{{(IntPart)_mm512_permutexvar_epi16(codes, table)}};
  }
};

template <int R, bool kMins>
void few_code_rows(const LinearJob& job, int64_t panel, int64_t count, int64_t row) {
  const WeightLayout& w = job.weight;
  const HeaderReader reader(w, job.data);
  const int64_t blocks = w.blocks();
  const CodeLevels levels(job);
  alignas(64) float y[R * kPanel], pair[R * kPanel];
  CodeParts parts(w);
  for (int64_t p = panel; p < panel + count; p++) {
    const uint8_t* at = w.panel(job.data, p);
    Float sums[R][kHalves] = {};
    for (parts.block = 0; parts.block < blocks; parts.block += kPieceBlocks) {
      parts.count = blocks - parts.block < kPieceBlocks ? blocks - parts.block : kPieceBlocks;
      parts.read<kMins>(reader, at);
      for (int part = 0; part < parts.parts; part++) {
        FewRows<R, kMins> rows;
        for (int64_t i = parts.begin[part]; i < parts.begin[part + 1]; i++) {
          const uint8_t* x = job.x + row * job.x_bytes + (parts.block + i) * kTileBytes;
          if (parts.has_zeros) {
            rows.template add<true>(levels, parts.codes[i], parts.zeros[part], x, job.x_bytes);
          } else {
            rows.template add<false>(levels, parts.codes[i], parts.zeros[part], x, job.x_bytes);
          }
        }
        for (int half = 0; half < kHalves; half++) {
          const Float scale = load(parts.scales[part] + half * kLanes);
          for (int r = 0; r < R; r++) {
            Float& sum = sums[r][half];
            sum = fma(rows.dot[r][half], scale, sum);
            if (kMins) sum = fma(rows.x_sum[r], load(parts.mins[part] + half * kLanes), sum);
          }
        }
      }
    }
    for (int r = 0; r < R; r++) {
      for (int half = 0; half < kHalves; half++) store(y + r * kPanel + half * kLanes, sums[r][half]);
    }
    finish(job, p, row, R, y, pair);
  }
}

template <bool kMins>
void code_panels(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin, int64_t row_end) {
  const int64_t rows = row_end - row_begin;
  if (rows == 1) return few_code_rows<1, kMins>(job, panel, count, row_begin);
  if (rows == 2) return few_code_rows<2, kMins>(job, panel, count, row_begin);
  if (rows == 3) return few_code_rows<3, kMins>(job, panel, count, row_begin);
  if (rows <= 8) return code_tiles<8, kMins>(job, panel, count, row_begin, row_end);
  code_tiles<16, kMins>(job, panel, count, row_begin, row_end);
}

inline void code_panels(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                        int64_t row_end) {
  const FlushToZero flush;
  if (job.weight.has_mins()) return code_panels<true>(job, panel, count, row_begin, row_end);
  code_panels<false>(job, panel, count, row_begin, row_end);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
