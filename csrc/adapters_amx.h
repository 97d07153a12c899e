// adapter_shrink and adapter_expand by AMX tiles where all numbers are bf16. Others go to AVX-512.
//
// As in linear_amx.h, every number of rows goes through tiles: a block of 32 k is one step. Of shrink,
// the steps in turn have two sums, which are added at last.
#pragma once
#include "adapter_tiles.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int64_t kChunkSteps = 16;  // of rows that are copied at a time

// Rows in two tiles.
struct TileShape {
  int upper, lower;
  explicit TileShape(int64_t rows)
      : upper(static_cast<int>(rows < kTileRows ? rows : kTileRows)),
        lower(static_cast<int>(rows) - upper) {}
};

void adapter_shrink(const ShrinkJob& job, const uint8_t* const* x, int64_t rows, float* sums) {
  if (!job.bf16 || job.x_kind != Kind::bf16) return avx512::adapter_shrink(job, x, rows, sums);
  const TileShape shape(rows);
  const int64_t row_bytes = 2 * job.k, steps = (row_bytes + kTileBytes - 1) / kTileBytes;
  // Rows that lie apart are copied, and those whose end fills no tile.
  const int64_t stride = rows > 1 ? x[1] - x[0] : kTileBytes;
  bool even = stride > 0;
  for (int64_t i = 0; i < rows; i++) even = even && x[i] == x[0] + i * stride;
  alignas(64) uint8_t copy[2 * kTileRows][kChunkSteps * kTileBytes];
  constexpr int64_t kStepBytes = kTileRows * 64;  // of A
  const int64_t a_bytes = adapter_panel_bytes(job.k, true);
  configure_tiles(shape.upper, shape.lower);
  zero_tile<c00>(), zero_tile<c01>();
  if (shape.lower) zero_tile<c10>(), zero_tile<c11>();
  for (int64_t first = 0; first < steps; first += kChunkSteps) {
    const int64_t last = first + kChunkSteps < steps ? first + kChunkSteps : steps;
    const int64_t begin = first * kTileBytes, whole = last * kTileBytes;
    const uint8_t* from = x[0] + begin;
    int64_t from_stride = stride;
    if (!even || whole > row_bytes) {
      const int64_t bytes = (whole < row_bytes ? whole : row_bytes) - begin;
      for (int64_t i = 0; i < rows; i++) {
        memcpy(copy[i], x[i] + begin, bytes);
        memset(copy[i] + bytes, 0, whole - begin - bytes);
      }
      from = copy[0], from_stride = sizeof copy[0];
    }
    for (int64_t s = first; s < last; s++, from += kTileBytes) {
      const uint8_t* a = job.a + s * kStepBytes;
      alignas(64) uint8_t end[kStepBytes];
      if ((s + 1) * kStepBytes > a_bytes) {
        memset(end, 0, sizeof end);
        memcpy(end, a, a_bytes - s * kStepBytes);
        a = end;
      }
      for (int64_t i = 0; i < kStepBytes; i += 64) __builtin_prefetch(a + 4 * kStepBytes + i, 0, 2);
      load_tile<a0>(from, from_stride);
      if (shape.lower) load_tile<a1>(from + shape.upper * from_stride, from_stride);
      if (s % 2 == 0) {
        load_tile<b0>(a, 64), add_bf16<c00, a0, b0>();
        if (shape.lower) add_bf16<c10, a1, b0>();
      } else {
        load_tile<b1>(a, 64), add_bf16<c01, a0, b1>();
        if (shape.lower) add_bf16<c11, a1, b1>();
      }
    }
  }
  alignas(64) float odd[2 * kTileRows * kLanes];
  store_tile<c00>(sums, 64), store_tile<c01>(odd, 64);
  if (shape.lower) {
    store_tile<c10>(sums + shape.upper * kLanes, 64), store_tile<c11>(odd + shape.upper * kLanes, 64);
  }
  release_tiles();
  for (int64_t i = 0; i < rows * kLanes; i += kLanes) store(sums + i, load(sums + i) + load(odd + i));
}

void adapter_expand(const ExpandJob& job, int64_t first, int64_t panels, const uint8_t* const* x,
                    int64_t rows, float* const* out) {
  if (!job.bf16 || job.x_kind != Kind::bf16 || job.affine) {
    return avx512::adapter_expand(job, first, panels, x, rows, out);
  }
  const TileShape shape(rows);
  const int64_t blocks = (job.k + kLowBlock - 1) / kLowBlock;
  const int64_t bytes = adapter_panel_bytes(job.k, true);
  alignas(64) uint8_t low[2 * kTileRows][kLowBytes];
  alignas(64) float y[2 * kTileRows][kLanes];
  configure_tiles(shape.upper, shape.lower);
  for (int64_t p = first; p < first + panels; p++) {
    const int64_t column = p * job.step, left = job.n - p * kLanes;
    const int n = left < kLanes ? static_cast<int>(left) : kLanes;
    for (int64_t i = 0; i < rows; i++) store(y[i], load_part(out[i] + column, n));
    load_tile<c00>(y[0], 64);
    if (shape.lower) load_tile<c10>(y[shape.upper], 64);
    for (int64_t block = 0; block < blocks; block++) {
      for (int64_t i = 0; i < rows; i++) memcpy(low[i], x[i] + block * kLowBytes, kLowBytes);
      const uint8_t* b = job.b + p * bytes + block * kTileRows * 64;
      const LowTiles tiles{low[0], low[shape.upper], kLowBytes};
      shape.lower ? add_low<true>(tiles, &b, 1) : add_low<false>(tiles, &b, 1);
    }
    store_tile<c00>(y[0], 64);
    if (shape.lower) store_tile<c10>(y[shape.upper], 64);
    for (int64_t i = 0; i < rows; i++) store_part(out[i] + column, load(y[i]), n);
  }
  release_tiles();
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
