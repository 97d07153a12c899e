// Codes whose levels are floats, on rows of bf16, by AMX tiles; included by linear_amx.h.
//
// Levels are rounded to bf16, which E4M3 needs not. Of each span, the values of one scale, tiles sum the
// products in the order of linear_amx.h; then y = fma(sum, scale, y). Every number of rows goes through
// them.
#pragma once
#include "linear_epilogue.h"
#include "linear_spans.h"
#include "tile_blocks.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int64_t kLevelBlocks = 8;  // of a panel, that become bf16 at a time: 16 KB

// The levels of a weight as bf16.
struct Bf16Levels {
  bool nibbles, float8;
  alignas(64) uint16_t pair[32];  // of nibbles, twice: the bit above an index does not matter
  alignas(64) float byte[256];    // of bytes, as floats

  explicit Bf16Levels(const LinearJob& job)
      : nibbles(job.weight.format == Format::i4), float8(job.float8) {
    const float* table = reinterpret_cast<const float*>(job.data);
    for (int i = 0; nibbles && i < 32; i++) pair[i] = bf16_from_float(table[i % 16]);
    for (int i = 0; !nibbles && !float8 && i < 256; i++) {
      byte[i] = float_from_bf16(bf16_from_float(table[i]));
    }
  }

  // A block of codes as bf16 [16 words][32 columns][2].
  void expand(const uint8_t* codes, uint8_t* to) const {
    for (int line = 0; line < (nibbles ? 4 : 8); line++) {
      for (int half = 0; half < kHalves; half++) {
        const Int four = words(codes + (line * kHalves + half) * 64);
        uint8_t* at = to + (2 * line * kHalves + half) * 64;
        if (nibbles) {
          put_nibbles(four, at);
          put_nibbles(shift_right<4>(four), at + 8 * kHalves * 64);
        } else if (float8) {
          Int first, second;
          float8_pairs(four, &first, &second);
          put(first, second, at);
        } else {
          const Four level = Float8Levels::by_look_up(byte, four);
          put(pair_of(level.k[0], level.k[1]), pair_of(level.k[2], level.k[3]), at);
        }
      }
    }
  }

 private:
  static GALLEY_INLINE void put(const Int& first, const Int& second, uint8_t* at) {
    store(reinterpret_cast<int32_t*>(at), first);
    store(reinterpret_cast<int32_t*>(at + kHalves * 64), second);
  }
  static GALLEY_INLINE Int pair_of(const Float& low, const Float& high) {
    return shift_right<16>(as_int(low)) | (as_int(high) & all(static_cast<int32_t>(0xffff0000u)));
  }
  GALLEY_INLINE void put_nibbles(const Int& codes, uint8_t* at) const {
    const __m512i levels = _mm512_load_si512(pair), bytes = (__m512i)codes.part[0];
    const __m512i second = _mm512_srli_epi32(bytes, 16);
    auto look_up_pair = [&](const __m512i& of) {  // bytes 0 and 1 of a lane begin its two halves
      const __m512i apart = _mm512_mask_blend_epi16(0xaaaaaaaau, of, _mm512_slli_epi32(of, 8));
      return Int{{(IntPart)_mm512_permutexvar_epi16(apart, levels)}};
    };
    put(look_up_pair(bytes), look_up_pair(second), at);
  }
};

// Rows in blocks of tiles on blocks [block, end) of a panel, of which `levels` has the bf16.
struct FloatPiece {
  const LinearJob* job;
  const HeaderReader* reader;
  const uint8_t *panel, *levels;
  int64_t block, end;
};

// y, sums: [rows][32].
template <bool kLower>
void add_float_piece(const FloatPiece& p, const TileBlocks& blocks, int64_t row, float* y, float* sums) {
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

inline void float_panels(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                         int64_t row_end) {
  const WeightLayout& w = job.weight;
  const HeaderReader reader(w, job.data);
  const Bf16Levels levels(job);
  const TileBlocks blocks(row_begin, row_end);
  alignas(64) uint8_t piece[kLevelBlocks * kTileWords * kWordBytes];
  alignas(64) float y[kChunkRows * kPanel], sums[kChunkRows * kPanel], pair[kChunkRows * kPanel];
  const int64_t block_bytes = w.block_bytes(), sums_of_block = blocks.size * kPanel;
  configure_tiles(blocks.upper, blocks.lower);
  for (int64_t p = panel; p < panel + count; p++) {
    const uint8_t* at = w.panel(job.data, p);
    memset(y, 0, blocks.count * sums_of_block * 4);
    for (int64_t block = 0; block < w.blocks(); block += kLevelBlocks) {
      const int64_t left = w.blocks() - block, in_piece = left < kLevelBlocks ? left : kLevelBlocks;
      for (int64_t i = 0; i < in_piece; i++) {
        const uint8_t* codes = at + w.block_at(block + i);
        for (int64_t b = 0; b < block_bytes; b += 64) __builtin_prefetch(codes + kAhead + b);
        levels.expand(codes, piece + i * kTileWords * kWordBytes);
      }
      const FloatPiece of{&job, &reader, at, piece, block, block + in_piece};
      int64_t done = row_begin;
      for (int64_t i = 0; i < blocks.count; i++) {
        const int64_t row = blocks.first_row(i);
        float *y_of = y + i * sums_of_block, *sums_of = sums + i * sums_of_block;
        if (blocks.lower) {
          add_float_piece<true>(of, blocks, row, y_of, sums_of);
        } else {
          add_float_piece<false>(of, blocks, row, y_of, sums_of);
        }
        if (left > kLevelBlocks) continue;
        finish(job, p, done, static_cast<int>(row + blocks.size - done), y_of + (done - row) * kPanel,
               pair + (done - row_begin) * kPanel);
        done = row + blocks.size;
      }
    }
  }
  release_tiles();
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
