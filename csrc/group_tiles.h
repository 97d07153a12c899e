// Codes with a scale per group on rows of q8 or q16, by AMX tiles; included by linear_amx.h.
//
// A tile multiplies 16 rows with a group (or half of one, where weights have a scale per 16) of 16
// columns, by integers and so exactly. Scales follow in the order of linear_kernel.h: the same bits as
// those of the other instruction sets.
//
// Some groups of a panel at a time become signed levels and float32 scales, which stay in the L1
// cache while all rows go through them. The last block of rows overlaps with the one before it where
// rows are not a multiple of 16.
#pragma once
#include "linear_codes.h"
#include "linear_epilogue.h"
#include "tile_blocks.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int64_t kPieceGroups = 16;
constexpr int64_t kLeastGroupRows = 32;  // fewer rows are not faster than with AVX-512

// Whether levels fit signed bytes.
GALLEY_INLINE bool has_signed_levels(const WeightLayout& w) {
  if (w.table == CodeTable::floats) return false;
  return w.format != Format::i8 || (w.offset != Offset::zeros && w.zero == 128);
}

// Groups [block, block + count) of a panel.
struct GroupPiece {
  alignas(64) uint8_t levels[kPieceGroups][kGroup * kPanel];  // signed, as the codes of i8 lie
  alignas(64) float scales[2 * kPieceGroups][kPanel];         // of each part of a group
  alignas(64) float mins[2 * kPieceGroups][kPanel];
  int64_t block, count;
};

inline Int subtract_bytes(const Int& a, const Int& b) {
  return Int{{(IntPart)_mm512_sub_epi8((__m512i)a.part[0], (__m512i)b.part[0])}};
}

// Part `sub` of group i, in one half of the columns; `header` and `entry` are of its scales.
template <int kSubs, bool kMins>
void expand_part(const LinearJob& job, const HeaderReader& reader, const uint8_t* header,
                 int64_t entry, int64_t i, int sub, int half, GroupPiece& piece) {
  const WeightLayout& w = job.weight;
  const ScaleAndMin affine = reader.scales<kMins>(header, entry, half);
  store(piece.scales[i * kSubs + sub] + half * kLanes, affine.scale);
  if (kMins) store(piece.mins[i * kSubs + sub] + half * kLanes, affine.min);
  Int zeros = all(w.table == CodeTable::levels ? 128 : w.zero);
  if (w.offset == Offset::zeros) zeros = reader.zeros(header, entry, half);
  zeros = four_times(zeros);
  uint8_t* lines = piece.levels[i] + half * 64;
  for (int j = sub * 8 / kSubs; j < (sub + 1) * 8 / kSubs; j++) {
    uint8_t* line = lines + j * kHalves * 64;
    store(reinterpret_cast<int32_t*>(line), subtract_bytes(words(line), zeros));
  }
}

template <int kSubs, bool kMins>
void expand_piece(const LinearJob& job, const HeaderReader& reader, const uint8_t* panel,
                  GroupPiece& piece) {
  const WeightLayout& w = job.weight;
  const uint8_t* table = w.table == CodeTable::levels ? job.data : nullptr;
  const int64_t span = w.span_blocks(), header_bytes = w.header_bytes(), block_bytes = w.block_bytes();
  const int64_t bytes = w.panel_bytes() / w.blocks(), ahead = piece.count * bytes;
  const uint8_t *header = panel + w.header_at(piece.block), *codes = panel + w.block_at(piece.block);
  int64_t number = piece.block % span;  // of the block in its span
  for (int64_t i = 0; i < piece.count; i++, number++, codes += block_bytes) {
    if (number == span) number = 0, header = codes, codes += header_bytes;
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(codes + ahead + at, 0, 2);
    for (int half = 0; half < kHalves; half++) {
      expand(w, codes + half * 64, number, table, piece.levels[i] + half * 64, nullptr);
      for (int sub = 0; sub < kSubs; sub++) {
        const int64_t entry = (w.two_level() ? number * kSubs : 0) + sub;
        expand_part<kSubs, kMins>(job, reader, header, entry, i, sub, half, piece);
      }
    }
  }
}

// 16 rows, at the piece's first group.
struct GroupRows {
  const uint8_t *codes, *side;  // side: scale, start, scaled sum and half, each for `blocks` groups
  int64_t stride, blocks;
};

// One half of the columns; adds the piece to y [16][32].
template <int kPlanes, int kSubs, bool kMins> struct GroupTiles {
  using Sums = int32_t[kPlanes][kTileRows][kLanes];
  using Rows = RowPointers<kTileRows>;
  // Parts whose sums go to memory before they are scaled: tiles and vectors in turn, part by part, take
  // a quarter longer.
  static constexpr int64_t kBatch = 16 / kPlanes;

  static void add(const GroupPiece& piece, const GroupRows& x, int half, float* y) {
    alignas(64) Sums sums[kBatch];
    Float acc[kTileRows];
    _Pragma("GCC unroll 16") for (int r = 0; r < kTileRows; r++) acc[r] = load(y + r * kPanel);
    Rows scales(x.side, x.stride);
    const int64_t parts = piece.count * kSubs;
    for (int64_t first = 0; first < parts; first += kBatch) {
      const int64_t end = first + kBatch < parts ? first + kBatch : parts;
      for (int64_t i = first; i < end; i += 2) {
        multiply<c00, c01, b0>(piece, x, half, i, sums[i - first]);
        if (i + 1 < end) multiply<c10, c11, b1>(piece, x, half, i + 1, sums[i + 1 - first]);
      }
      for (int64_t i = first; i < end; i += 2) {
        scale<0>(piece, x, half, i, sums[i - first], scales, acc);
        if (i + 1 < end) scale<1>(piece, x, half, i + 1, sums[i + 1 - first], scales, acc);
      }
    }
    _Pragma("GCC unroll 16") for (int r = 0; r < kTileRows; r++) store(y + r * kPanel, acc[r]);
  }

 private:
  template <Tile first, Tile second, Tile b>
  static GALLEY_INLINE void multiply(const GroupPiece& piece, const GroupRows& x, int half, int64_t i,
                                     Sums& sums) {
    const int64_t group = i / kSubs, sub = i % kSubs;
    const uint8_t* q = x.codes + group * kPlanes * kGroup + sub * kGroup / kSubs;
    load_tile<b>(piece.levels[group] + (sub * 8 / kSubs * kHalves + half) * 64, kHalves * 64);
    zero_tile<first>();
    load_tile<a0>(q, x.stride);
    add_signed<first, a0, b>();
    if (kPlanes == 2) {
      zero_tile<second>();
      load_tile<a1>(q + kGroup, x.stride);
      add_signed<second, a1, b>();
      store_tile<second>(sums[kPlanes - 1], kLanes * 4);
    }
    store_tile<first>(sums[0], kLanes * 4);
  }

  // `scales` are of the part's group, and then of the next one's.
  template <int kOdd>
  static GALLEY_INLINE void scale(const GroupPiece& piece, const GroupRows& x, int half, int64_t i,
                                  const Sums& sums, Rows& scales, Float (&acc)[kTileRows]) {
    const Float scale = load(piece.scales[i] + half * kLanes);
    _Pragma("GCC unroll 16") for (int r = 0; r < kTileRows; r++) {
      Float dot = to_float(load(sums[0][r]));
      // Rounded once, as the sum of both planes in integers would be.
      if (kPlanes == 2) dot = fma(dot, all(256.0f), to_float(load(sums[kPlanes - 1][r])));
      acc[r] = fma(dot, scale * all(float_at(scales[r])), acc[r]);
    }
    if (kMins) {
      const Float min = load(piece.mins[i] + half * kLanes);
      Rows others = scales;  // the scaled sums, or the starts
      others.advance((kSubs == 1 ? 8 : 4) * x.blocks);
      _Pragma("GCC unroll 16") for (int r = 0; r < kTileRows; r++) {
        Float sum;
        if (kSubs == 1) {
          sum = all(float_at(others[r]));
        } else {
          const int32_t first = word_at(others[r] + 8 * x.blocks);
          const int32_t start = kOdd ? word_at(others[r]) - first : first;
          sum = all(float_at(scales[r])) * all(-0.125f * static_cast<float>(start));
        }
        acc[r] = fma(min, sum, acc[r]);
      }
    }
    if (kSubs == 1 || kOdd) scales.advance(4);
  }
};

template <int kPlanes, int kSubs, bool kMins>
void group_panels(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                  int64_t row_end) {
  const WeightLayout& w = job.weight;
  const HeaderReader reader(w);
  GroupPiece piece;
  alignas(64) float sums[kChunkRows * kPanel], pair[kChunkRows * kPanel];
  const int64_t blocks = w.blocks();
  configure_tiles(kTileRows, kTileRows, 8 / kSubs);
  for (int64_t p = panel; p < panel + count; p++) {
    memset(sums, 0, round_up(row_end - row_begin, kTileRows) * kPanel * 4);
    for (piece.block = 0; piece.block < blocks; piece.block += kPieceGroups) {
      const int64_t left = blocks - piece.block;
      piece.count = left < kPieceGroups ? left : kPieceGroups;
      expand_piece<kSubs, kMins>(job, reader, w.panel(job.data, p), piece);
      float* y = sums;
      for (int64_t done = row_begin; done < row_end; y += kTileRows * kPanel) {
        const int64_t row = done + kTileRows < row_end ? done : row_end - kTileRows;
        const uint8_t* x = job.x + row * job.x_bytes;
        const GroupRows rows{x + piece.block * kPlanes * kGroup,
                             x + blocks * kPlanes * kGroup + 4 * piece.block, job.x_bytes, blocks};
        for (int half = 0; half < kHalves; half++) {
          GroupTiles<kPlanes, kSubs, kMins>::add(piece, rows, half, y + half * kLanes);
        }
        if (left <= kPieceGroups) {
          finish(job, p, done, static_cast<int>(row + kTileRows - done), y + (done - row) * kPanel,
                 pair + (done - row_begin) * kPanel);
        }
        done = row + kTileRows;
      }
    }
  }
  release_tiles();
}

// The function for a weight; it takes at least kLeastGroupRows.
using GroupPanels = void (*)(const LinearJob&, int64_t panel, int64_t count, int64_t row_begin,
                             int64_t row_end);
template <int kPlanes> GroupPanels group_panels_of(const WeightLayout& w) {
  if (w.parts() == 2) {
    return w.has_mins() ? group_panels<kPlanes, 2, true> : group_panels<kPlanes, 2, false>;
  }
  return w.has_mins() ? group_panels<kPlanes, 1, true> : group_panels<kPlanes, 1, false>;
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
