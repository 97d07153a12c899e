// E4M3 on rows of bf16, by AMX tiles; included by linear_amx.h.
//
// Levels are exact in bf16. Of each span, the values of one scale, products are summed in the order of
// linear_amx.h; then y = fma(sum, scale, y).
#pragma once
#include "linear_epilogue.h"
#include "linear_spans.h"
#include "tile_blocks.h"

namespace galley {
namespace GALLEY_VARIANT {

// A block of codes as bf16 [16 words][32 columns][2].
inline void expand_float8(const uint8_t* codes, uint8_t* to) {
  for (int line = 0; line < 8 * kHalves; line++, codes += 64) {
    Int first, second;
    float8_pairs(words(codes), &first, &second);
    uint8_t* at = to + (line / kHalves * 2 * kHalves + line % kHalves) * 64;
    store(reinterpret_cast<int32_t*>(at), first);
    store(reinterpret_cast<int32_t*>(at + kWordBytes), second);
  }
}

// Rows in blocks of tiles on blocks [block, end) of a panel, of which `levels` has the bf16.
struct BytePiece {
  const LinearJob* job;
  const HeaderReader* reader;
  const uint8_t *panel, *levels;
  int64_t block, end;
};

// y, sums: [rows][32].
template <bool kLower>
void add_byte_piece(const BytePiece& p, const TileBlocks& blocks, int64_t row, float* y, float* sums) {
  const WeightLayout& w = p.job->weight;
  const int64_t span = w.scale_blocks(), whole = w.k / kGroup;
  const uint8_t* x = p.job->x + row * p.job->x_bytes;
  const auto nothing = [](int64_t) {};
  for (int64_t block = p.block; block < p.end;) {
    const int64_t border = (block / span + 1) * span, end = border < p.end ? border : p.end;
    if (block % span) {
      load_sums<kLower>(sums, blocks.upper);
    } else {
      zero_tile<c00>(), zero_tile<c01>();
      if (kLower) zero_tile<c10>(), zero_tile<c11>();
    }
    const uint8_t* levels = p.levels + (block - p.block) * kTileWords * kWordBytes;
    const int64_t steps = (end < whole ? end : whole) - block;
    add_products<Bf16Product, kLower, false>(x + block * kTileBytes, p.job->x_bytes, blocks.upper, levels,
                                             steps, nullptr, 0, nothing);
    if (end > whole) {  // filled up with zeros
      alignas(64) uint8_t rest[2 * kTileRows * kTileBytes] = {};
      for (int64_t r = 0; r < blocks.size; r++) {
        memcpy(rest + r * kTileBytes, x + r * p.job->x_bytes + whole * kTileBytes, 2 * (w.k % kGroup));
      }
      add_products<Bf16Product, kLower, false>(rest, kTileBytes, blocks.upper,
                                               levels + steps * kTileWords * kWordBytes, 1, nullptr, 0,
                                               nothing);
    }
    store_sums<kLower>(sums, blocks.upper);
    if (end == border || end == w.blocks()) {
      const uint8_t* header = p.panel + w.header_at(block);
      const int64_t entry = block % w.span_blocks() / span;
      for (int half = 0; half < kHalves; half++) {
        const Float scale = p.reader->scales<false>(header, entry, half).scale;
        for (int64_t at = half * kLanes; at < blocks.size * kPanel; at += kPanel) {
          store(y + at, fma(load(sums + at), scale, load(y + at)));
        }
      }
    }
    block = end;
  }
}

inline void byte_tiles(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                       int64_t row_end) {
  const WeightLayout& w = job.weight;
  const HeaderReader reader(w);
  const TileBlocks blocks(row_begin, row_end);
  alignas(64) uint8_t piece[kPieceBlocks * kTileWords * kWordBytes];
  alignas(64) float y[kChunkRows * kPanel], sums[kChunkRows * kPanel], pair[kChunkRows * kPanel];
  const int64_t block_bytes = w.block_bytes(), sums_of_block = blocks.size * kPanel;
  configure_tiles(blocks.upper, blocks.lower);
  for (int64_t p = panel; p < panel + count; p++) {
    const uint8_t* at = w.panel(job.data, p);
    memset(y, 0, blocks.count * sums_of_block * 4);
    for (int64_t block = 0; block < w.blocks(); block += kPieceBlocks) {
      const int64_t left = w.blocks() - block, in_piece = left < kPieceBlocks ? left : kPieceBlocks;
      for (int64_t i = 0; i < in_piece; i++) {
        const uint8_t* codes = at + w.block_at(block + i);
        for (int64_t b = 0; b < block_bytes; b += 64) __builtin_prefetch(codes + kAhead + b);
        expand_float8(codes, piece + i * kTileWords * kWordBytes);
      }
      const BytePiece of{&job, &reader, at, piece, block, block + in_piece};
      int64_t done = row_begin;
      for (int64_t i = 0; i < blocks.count; i++) {
        const int64_t row = blocks.first_row(i);
        float *y_of = y + i * sums_of_block, *sums_of = sums + i * sums_of_block;
        if (blocks.lower) {
          add_byte_piece<true>(of, blocks, row, y_of, sums_of);
        } else {
          add_byte_piece<false>(of, blocks, row, y_of, sums_of);
        }
        if (left > kPieceBlocks) continue;
        finish(job, p, done, static_cast<int>(row + blocks.size - done), y_of + (done - row) * kPanel,
               pair + (done - row_begin) * kPanel);
        done = row + blocks.size;
      }
    }
  }
  release_tiles();
}

// 32 values of a row of bf16 for products without tiles: pairs of even k (2 and 0 of each four), and of odd
// ones (3 and 1). Of a pair the higher half is added first.
class ParityPairs {
 public:
  // `bytes`: of the row; the rest counts as 0.
  GALLEY_INLINE void read(const uint8_t* row, int64_t bytes = kTileBytes) {
    const __mmask64 mask = ~0ull >> (kTileBytes - bytes);
    const __m128i order = _mm_setr_epi8(4, 5, 0, 1, 6, 7, 2, 3, 12, 13, 8, 9, 14, 15, 10, 11);
    const __m512i values = _mm512_maskz_loadu_epi8(mask, row);
    _mm512_store_si512(pairs_, _mm512_shuffle_epi8(values, _mm512_broadcast_i32x4(order)));
    // Broadcasts from memory cost nothing, from registers they compete with permutations.
    asm("" : "+m"(pairs_));
  }
  GALLEY_INLINE Int even(int four) const { return all(pairs_[2 * four]); }
  GALLEY_INLINE Int odd(int four) const { return all(pairs_[2 * four + 1]); }

 private:
  alignas(64) int32_t pairs_[kTileWords];
};

// E4M3 in the lower bytes of words as bf16. `special`: values of codes below 8, which are subnormal, and in
// its last place NaN.
GALLEY_INLINE Int float8_words(const __m512i& codes, const __m512i& special) {
  const __m512i magnitude = _mm512_and_si512(codes, _mm512_set1_epi16(0x7f));
  const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  const __m512i above = _mm512_sub_epi16(magnitude, _mm512_set1_epi16(8));
  const __mmask32 is_special = _mm512_cmpge_epu16_mask(above, _mm512_set1_epi16(0x7f - 8));
  const __m512i value = _mm512_mask_permutexvar_epi16(normal, is_special, magnitude, special);
  const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(codes, 8), _mm512_set1_epi16(-0x8000));
  return Int{{(IntPart)_mm512_or_si512(value, sign)}};
}

// A lone row, for which expanding the levels would take longer than reading the codes: the same numbers in
// the same order without tiles.
inline void lone_byte_row(const LinearJob& job, int64_t panel, int64_t count, int64_t row) {
  const WeightLayout& w = job.weight;
  const HeaderReader reader(w);
  const int64_t span = w.scale_blocks(), block_bytes = w.block_bytes();
  alignas(64) uint16_t values[32] = {};
  for (int i = 0; i < 8; i++) values[i] = bf16_from_float(reinterpret_cast<const float*>(job.data)[i]);
  values[31] = 0x7ff0;
  const __m512i special = _mm512_load_si512(values);
  alignas(64) float y[kPanel], pair[kPanel];
  for (int64_t p = panel; p < panel + count; p++) {
    const uint8_t* at = w.panel(job.data, p);
    Float sums[kHalves] = {}, dot[kHalves] = {};
    for (int64_t block = 0; block < w.blocks(); block++) {
      const uint8_t* codes = at + w.block_at(block);
      for (int64_t b = 0; b < block_bytes; b += 64) __builtin_prefetch(codes + kAhead + b);
      const int64_t left = 2 * w.k - block * kTileBytes;
      ParityPairs x;
      x.read(job.x + row * job.x_bytes + block * kTileBytes, left < kTileBytes ? left : kTileBytes);
      for (int half = 0; half < kHalves; half++) {
        Float even{}, odd{};
        _Pragma("GCC unroll 8") for (int step = 0; step < 8; step++) {
          const __m512i four = _mm512_loadu_si512(codes + (step * kHalves + half) * 64);
          even = dot_bf16(even, float8_words(_mm512_ror_epi32(four, 16), special), x.even(step));
          odd = dot_bf16(odd, float8_words(_mm512_ror_epi32(four, 24), special), x.odd(step));
        }
        dot[half] = dot[half] + (even + odd);
      }
      if ((block + 1) % span && block + 1 < w.blocks()) continue;
      const int64_t entry = block % w.span_blocks() / span;
      for (int half = 0; half < kHalves; half++) {
        const Float scale = reader.scales<false>(at + w.header_at(block), entry, half).scale;
        sums[half] = fma(dot[half], scale, sums[half]);
        dot[half] = Float{};
      }
    }
    for (int half = 0; half < kHalves; half++) store(y + half * kLanes, sums[half]);
    finish(job, p, row, 1, y, pair);
  }
}

inline void byte_panels(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                        int64_t row_end) {
  const FlushToZero flush;
  if (row_end - row_begin == 1) return lone_byte_row(job, panel, count, row_begin);
  byte_tiles(job, panel, count, row_begin, row_end);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
