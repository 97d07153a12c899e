// linear_tile by AMX tiles: bf16, int8 with one scale per output, codes with scales (code_tiles.h) and E4M3
// (byte_tiles.h) on bf16, and codes in groups on rows of integers (group_tiles.h) from 32 rows on. Other kinds,
// and fewer such rows, go to AVX-512.
//
// Sixteen words of K of a panel are two tiles as they lie. A block of up to 32 rows of x is two tiles,
// with four of sums. Every number of rows of bf16 goes through tiles, since the order of additions is
// theirs: of 32 values of K, the products of even and of odd k are summed apart, from 0 and in order;
// then sum = sum + (even + odd). Numbers too small to be normal count as 0.
//
// As with the other instruction sets, K is cut into pieces for several blocks of long rows, with the
// sums in memory in between, and the weights that come next are prefetched.
// Adapters whose rows are bf16, too, add to the tiles of a block; only those with gains and shifts wait
// for the sums in memory.
#pragma once
#include "adapter_tiles.h"
#include "byte_tiles.h"
#include "code_tiles.h"
#include "group_tiles.h"
#include "linear_codes.h"
#include "linear_epilogue.h"
#include "linear_variants.h"
#include "tiles.h"

namespace galley {
namespace GALLEY_VARIANT {

// K is cut into pieces where rows are longer than kUncut words: 240 of them would fill the L2 cache.
constexpr int64_t kUncut = 1024, kPiece = 512;

// A block of rows and a piece of a panel.
struct TileBlock {
  const uint8_t* x;
  int64_t x_bytes;
  const uint8_t* w;
  int64_t words;        // of K
  int64_t last_bytes;   // of each row in the last words, where these fill no tile
  bool adds;            // to the sums that are there
  float* y;             // sums [rows][32]
  const uint8_t* next;  // weights to prefetch, evenly over the words
  int64_t lines;        // of 64 bytes, for 16 words
  const LinearJob* adapted;  // adapters add to its tiles; null = no, or not yet
  int64_t panel, row;        // of the layer
};

template <class Product, bool kLower, bool kStreams, class Between>
GALLEY_INLINE void tile_block(const TileBlocks& blocks, const TileBlock& b, const Between& between) {
  if (b.adds) {
    load_sums<kLower>(b.y, blocks.upper);
  } else {
    zero_tile<c00>(), zero_tile<c01>();
    if (kLower) zero_tile<c10>(), zero_tile<c11>();
  }
  const int64_t steps = b.words / kTileWords, last = b.words % kTileWords;
  add_products<Product, kLower, kStreams>(b.x, b.x_bytes, blocks.upper, b.w, steps, b.next, b.lines,
                                          between);
  if (last) {  // filled up with zeros
    alignas(64) uint8_t x[2 * kTileRows * kTileBytes] = {}, w[kTileWords * kWordBytes] = {};
    for (int64_t r = 0; r < blocks.size; r++) {
      memcpy(x + r * kTileBytes, b.x + r * b.x_bytes + steps * kTileBytes, b.last_bytes);
    }
    memcpy(w, b.w + steps * kTileWords * kWordBytes, last * kWordBytes);
    add_products<Product, kLower, false>(x, kTileBytes, blocks.upper, w, 1, nullptr, 0, [](int64_t) {});
  }
  between(0);
  if (b.adapted) {
    const LinearJob& job = *b.adapted;
    if (job.bias) {  // which comes before what adapters add
      store_sums<kLower>(b.y, blocks.upper);
      const int64_t column = b.panel * kPanel;
      add_bias(job.bias + column, job.weight.n - column, b.y, static_cast<int>(blocks.size));
      load_sums<kLower>(b.y, blocks.upper);
    }
    add_adapters<kLower>(*job.addend, b.panel, b.row, blocks.upper, blocks.size);
  }
  store_sums<kLower>(b.y, blocks.upper);
}

// Rows whose sums wait in `y` [rows][32] until the tiles compute the next block: `use` is called for
// some of them between its steps.
struct WaitingRows {
  int64_t panel = 0, row = 0;
  int rows = 0;
  float* y = nullptr;

  // Uses a share of the rows, of which `steps` are left, this one included; all of them where none is.
  template <class Use> GALLEY_INLINE void take(int64_t steps, const Use& use) {
    if (rows == 0) return;
    const int n = steps > 1 ? static_cast<int>((rows + steps - 1) / steps) : rows;
    use(panel, row, n, y);
    row += n, rows -= n, y += n * kPanel;
  }
};

// Sums of all of K for panels [first, first + count). Calls use(panel, first row, rows, sums) for
// some rows at a time, each once and those of a panel in order. `adapted`: bias and adapters are added already. `sums`: [kPiecePanels][rows of all blocks][32].
template <class Product, bool kLower, class Use>
void each_block(const LinearJob& job, int64_t first, int64_t count, const TileBlocks& blocks,
                float* sums, bool adapted, const Use& use) {
  const WeightLayout& w = job.weight;
  const int64_t row_bytes = w.quantised() ? w.blocks() * kGroup : 2 * w.k;
  const int64_t words = (row_bytes + 3) / 4, codes_at = w.quantised() ? kPanel * 4 : 0;
  const int64_t panel_bytes = w.panel_bytes(), sums_of_block = blocks.size * kPanel;
  const bool lone = blocks.count == 1;
  const int64_t piece = lone || words <= kUncut ? words : kPiece;
  constexpr int64_t kLines = kTileWords * kWordBytes / 64;
  const int64_t lines = lone ? kLines : (kLines + blocks.count - 1) / blocks.count;
  const int64_t together = piece < words ? kPiecePanels : 1;
  WaitingRows waiting;
  configure_tiles(blocks.upper, blocks.lower);
  for (int64_t panel = first; panel < first + count; panel += together) {
    const int64_t left = first + count - panel, panels = left < together ? left : together;
    const uint8_t* codes = w.panel(job.data, panel) + codes_at;
    for (int64_t word = 0; word < words; word += piece) {
      const int64_t end = word + piece < words ? word + piece : words;
      for (int64_t p = 0; p < panels; p++) {
        const uint8_t* at = codes + p * panel_bytes;
        const uint8_t* next = p + 1 < panels ? at + panel_bytes + word * kWordBytes
                              : end < words  ? codes + end * kWordBytes
                                             : at + panel_bytes;
        int64_t done = blocks.begin;
        for (int64_t i = 0; i < blocks.count; i++) {
          const int64_t row = blocks.first_row(i);
          // Where K is in one piece, a block's sums are used before the next one's are stored.
          const int64_t place = piece < words ? p * blocks.count + i : 0;
          float* y = sums + place * sums_of_block;
          const TileBlock b{job.x + row * job.x_bytes + 4 * word, job.x_bytes, at + word * kWordBytes,
                            end - word, row_bytes - end / kTileWords * kTileBytes, word > 0, y,
                            lone ? at + kAhead : next + i * lines * ((end - word) / kTileWords * 64),
                            lines, adapted && end == words ? &job : nullptr, panel + p, row};
          const auto between = [&](int64_t steps) { waiting.take(steps, use); };
          if (lone) {
            tile_block<Product, kLower, false>(blocks, b, between);
          } else {
            tile_block<Product, kLower, true>(blocks, b, between);
          }
          if (end < words) continue;
          waiting = {panel + p, done, static_cast<int>(row + blocks.size - done),
                     y + (done - row) * kPanel};
          done = row + blocks.size;
        }
      }
    }
  }
  waiting.take(0, use);
  release_tiles();
}

template <class Product, class Use>
void each_block(const LinearJob& job, int64_t first, int64_t count, const TileBlocks& blocks,
                float* sums, bool adapted, const Use& use) {
  if (blocks.lower) return each_block<Product, true>(job, first, count, blocks, sums, adapted, use);
  each_block<Product, false>(job, first, count, blocks, sums, adapted, use);
}

// Sums of unsigned codes become floats.
inline void scale_rows(const LinearJob& job, int64_t panel, int64_t row, int rows, float* y) {
  const uint8_t* end = job.x + row * job.x_bytes + job.weight.blocks() * kGroup;
  for (int r = 0; r < rows; r++, end += job.x_bytes) {
    for (int half = 0; half < kHalves; half++, y += kLanes) {
      const Int sums = load(reinterpret_cast<const int32_t*>(y)) + excess(end);
      store(y, scaled(sums, job.weight.panel(job.data, panel), half, end));
    }
  }
}

void linear_tile(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                 int64_t row_end, uint8_t* scratch) {
  if (job.x_kind == Kind::bf16 && job.weight.quantised()) {
    return job.float8 ? byte_panels(job, panel, count, row_begin, row_end)
                      : code_panels(job, panel, count, row_begin, row_end,
                                    reinterpret_cast<float*>(scratch));
  }
  if (in_groups(job.x_kind) && row_end - row_begin >= kLeastGroupRows && has_signed_levels(job.weight)) {
    const bool two = job.x_kind == Kind::q16;
    const GroupPanels panels = two ? group_panels_of<2>(job.weight) : group_panels_of<1>(job.weight);
    return panels(job, panel, count, row_begin, row_end);
  }
  if (job.x_kind != Kind::bf16 && job.x_kind != Kind::q8_row) {
    return avx512::linear_tile(job, panel, count, row_begin, row_end, scratch);
  }
  alignas(64) float pair[kChunkRows * kPanel];
  float* sums = reinterpret_cast<float*>(scratch);
  const TileBlocks blocks(row_begin, row_end);
  const auto end = [&](int64_t p, int64_t row, int rows, float* y) {
    finish(job, p, row, rows, y, pair + (row - row_begin) * kPanel);
  };
  if (job.x_kind == Kind::bf16 && job.addend && job.addend->low.kind == Kind::bf16) {
    const AdapterAddend& addend = *job.addend;
    return each_block<Bf16Product>(
        job, panel, count, blocks, sums, true, [&](int64_t p, int64_t row, int rows, float* y) {
          if (addend.any_affine) adapter_add(addend, p, row, rows, y, true);
          store_results(job, p, row, rows, y, pair + (row - row_begin) * kPanel);
        });
  }
  if (job.x_kind == Kind::bf16) {
    return each_block<Bf16Product>(job, panel, count, blocks, sums, false, end);
  }
  each_block<CodeProduct>(job, panel, count, blocks, sums, false,
                          [&](int64_t p, int64_t row, int rows, float* y) {
                            scale_rows(job, p, row, rows, y);
                            end(p, row, rows, y);
                          });
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
