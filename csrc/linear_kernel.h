// Definitions for linear_variants.h; compiled once per instruction set (variants.h).
//
//   for a panel of 32 columns
//     for a block of rows (12, or fewer where registers are fewer)
//       all of K in order, one accumulator per output: the order of additions depends on nothing
//       else, so a row's bits are the same in every batch
//     epilogue: bias, residual, SiLU·mul, number format
//
// The weights of the next panel are prefetched while this one is used: the first two row blocks
// bring in half of it each; a lone block, bound by memory, prefetches a little ahead of itself.
#pragma once
#include "linear_lanes.h"
#include "linear_variants.h"
#include "quantize_row.h"

namespace galley {
namespace GALLEY_VARIANT {

// Rows whose accumulators fit the registers, and how many of a panel's halves go side by side.
#if GALLEY_PARTS == 1
constexpr int kWordRows = 12, kGroupRows = 6, kWide = 2;
#elif GALLEY_PARTS == 2
constexpr int kWordRows = 4, kGroupRows = 2, kWide = 1;
#else
constexpr int kWordRows = 4, kGroupRows = 2, kWide = 1;
#endif
constexpr int64_t kAhead = 4096;  // bytes that a lone row block prefetches ahead

// What one block of rows computes: y[rows][32].
struct Block {
  const LinearJob* job;
  const uint8_t* panel;   // packed weights
  uint8_t* scratch;       // i4: the panel's codes as bytes, written by the first block of rows
  const uint8_t* x;       // the first row
  Prefetch prefetch;
  int64_t distance;       // from weights in use to those to prefetch, where `prefetch` sees both
  float* y;
};

#define GALLEY_ROWS _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)
#define GALLEY_WIDE _Pragma("GCC unroll 2") for (int c = 0; c < kWide; c++)

// Words of K: what 4 bytes of a row do with 4 bytes of each column.
struct FloatWord {
  using Acc = Float;
  static constexpr int kValues = 1;
  static GALLEY_INLINE Float step(const Float& acc, const Int& w, int32_t x) {
    return fma(as_float(all(x)), as_float(w), acc);
  }
};
struct Bf16Word {
  using Acc = Float;
  static constexpr int kValues = 2;
  static GALLEY_INLINE Float step(const Float& acc, const Int& w, int32_t x) {
    return dot_bf16(acc, all(x), w);
  }
};
struct CodeWord {
  using Acc = Int;
  static constexpr int kValues = 4;
  static GALLEY_INLINE Int step(const Int& acc, const Int& w, int32_t x) {
    return dot<128>(acc, w, x);
  }
};

// acc[row][half] += the row's words times the panel's, for R rows and kWide halves.
template <class Word, int R>
GALLEY_INLINE void walk_words(const uint8_t* w, int64_t words_of_k, const uint8_t* x,
                              int64_t x_bytes, Prefetch prefetch,
                              typename Word::Acc (&acc)[R][kWide]) {
  RowPointers<R> rows(x, x_bytes);
  for (const uint8_t* end = x + 4 * words_of_k; rows[0] < end; rows.advance(4)) {
    Int column[kWide];
    GALLEY_WIDE column[c] = words(w + c * 64);
    advance(prefetch);
    GALLEY_ROWS {
      const int32_t value = word_at(rows[r]);
      GALLEY_WIDE acc[r][c] = Word::step(acc[r][c], column[c], value);
    }
    w += kHalves * 64;
  }
}

// f32 and bf16.
template <class Word, int R> struct DenseRows {
  static void run(const Block& b) {
    const int64_t k = b.job->weight.k, x_bytes = b.job->x_bytes;
    const int64_t whole = k / Word::kValues;
    for (int half = 0; half < kHalves; half += kWide) {
      Float acc[R][kWide];
      GALLEY_ROWS GALLEY_WIDE acc[r][c] = zero();
      walk_words<Word, R>(b.panel + half * 64, whole, b.x, x_bytes, b.prefetch, acc);
      if (k % Word::kValues) {  // an odd bf16: the missing one is 0
        const uint8_t* w = b.panel + whole * kHalves * 64 + half * 64;
        GALLEY_ROWS {
          uint16_t last;
          memcpy(&last, b.x + r * x_bytes + 4 * whole, 2);
          GALLEY_WIDE acc[r][c] = Word::step(acc[r][c], words(w + c * 64), last);
        }
      }
      GALLEY_ROWS GALLEY_WIDE store(b.y + r * kPanel + (half + c) * kLanes, acc[r][c]);
    }
  }
};
template <int R> using FloatRows = DenseRows<FloatWord, R>;
template <int R> using Bf16Rows = DenseRows<Bf16Word, R>;

// int8 with one scale per output, on rows with one scale.
template <int R> struct PerRow {
  static void run(const Block& b) {
    const int64_t padded = b.job->weight.blocks() * kGroup, x_bytes = b.job->x_bytes;
    const uint8_t* codes = b.panel + kPanel * 4;
    for (int half = 0; half < kHalves; half += kWide) {
      Int acc[R][kWide];
      GALLEY_ROWS GALLEY_WIDE {
        acc[r][c] = start<128>(-8 * word_at(b.x + r * x_bytes + padded + 4));
      }
      walk_words<CodeWord, R>(codes + half * 64, padded / 4, b.x, x_bytes, b.prefetch, acc);
      GALLEY_ROWS GALLEY_WIDE {
        const Float scale = load_scale(b.panel, true, half + c);
        const Float both = scale * all(float_at(b.x + r * x_bytes + padded));
        store(b.y + r * kPanel + (half + c) * kLanes, to_float(acc[r][c]) * both);
      }
    }
  }
};

// How the codes of a block of 32 k are read. Calls use(j, column words) for the steps j of four k in
// [first, last).
//
// Bytes: one code a byte, of an i8 panel or of scratch memory.
template <bool kScratch> struct Bytes {
  static constexpr bool kFromScratch = kScratch;
  template <class Use>
  static GALLEY_INLINE void each(const uint8_t* codes, uint8_t*, int first, int last,
                                 Prefetch& prefetch, const Use& use) {
#pragma GCC unroll 8
    for (int j = first; j < last; j++) {
      Int column[kWide];
      GALLEY_WIDE column[c] = words(codes + (j * kHalves + c) * 64);
      advance(prefetch);
      use(j, column);
    }
  }
};
// Nibbles of an i4 panel, unpacked in registers and, for the row blocks to come, into scratch.
template <bool kKeep> struct Nibbles {
  static constexpr bool kFromScratch = false;
  template <class Use>
  static GALLEY_INLINE void each(const uint8_t* codes, uint8_t* scratch, int, int,
                                 Prefetch& prefetch, const Use& use) {
    const Int low = all(0x0f0f0f0f);
    int32_t* bytes = reinterpret_cast<int32_t*>(scratch);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      Int first[kWide], second[kWide];
      GALLEY_WIDE {
        const Int both = words(codes + (j * kHalves + c) * 64);
        first[c] = both & low;
        second[c] = shift_right<4>(both) & low;
        if (kKeep) store(bytes + (j * kHalves + c) * kLanes, first[c]);
        if (kKeep) store(bytes + ((j + 4) * kHalves + c) * kLanes, second[c]);
      }
      advance(prefetch);
      use(j, first);
      use(j + 4, second);
    }
  }
};

// Codes with a scale per 32 / kSubs values of K, on rows with a scale per 32. Per part, in order:
// y = fma(dot, w scale * x scale, y), then with mins y = fma(w min, x scale * sum of x, y).
template <class Codes, int kZero, int kSubs, bool kMin, int R> struct GroupedRows {
  static void run(const Block& b) {
    const WeightLayout& w = b.job->weight;
    const int64_t blocks = w.blocks(), stride = b.job->x_bytes;
    const int64_t block_bytes = w.block_bytes(), header_bytes = w.header_bytes();
    const int64_t line = w.scale_line_bytes();
    const int64_t code_bytes = Codes::kFromScratch ? kGroup * kPanel : block_bytes;
    const bool f32 = w.scale_f32;
    for (int half = 0; half < kHalves; half += kWide) {
      Prefetch prefetch = b.prefetch;
      const uint8_t* header = b.panel;
      const uint8_t* codes =
          (Codes::kFromScratch ? b.scratch : b.panel + header_bytes) + half * 64;
      uint8_t* scratch = b.scratch + half * 64;
      const uint8_t* side = b.x + blocks * kGroup;
      RowPointers<R> q(b.x, stride), scales(side, stride), starts(side + 4 * blocks, stride);
      RowPointers<R> sums(side + 8 * blocks, stride);
      Float y[R][kWide];
      GALLEY_ROWS GALLEY_WIDE y[r][c] = zero();
      for (const uint8_t* end = side + 4 * blocks; scales[0] < end; scales.advance(4)) {
        if (prefetch.second) {
          prefetch_header(header + b.distance, header_bytes);
          prefetch.at = header + b.distance + header_bytes;
        } else {
          advance(prefetch);
        }
#pragma GCC unroll 2
        for (int sub = 0; sub < kSubs; sub++) {
          Int acc[R][kWide];
          GALLEY_ROWS GALLEY_WIDE acc[r][c] = start<kZero>(part_start(starts[r], blocks, sub));
          Codes::each(codes, scratch, sub * 8 / kSubs, (sub + 1) * 8 / kSubs, prefetch,
                      [&](int j, const Int (&column)[kWide]) __attribute__((always_inline)) {
            GALLEY_ROWS {
              const int32_t value = word_at(q[r] + 4 * j);
              GALLEY_WIDE acc[r][c] = dot<kZero>(acc[r][c], column[c], value);
            }
          });
          Float scale[kWide], low[kWide];
          GALLEY_WIDE {
            scale[c] = load_scale(header + sub * line, f32, half + c);
            if (kMin) low[c] = load_scale(header + (kSubs + sub) * line, f32, half + c);
          }
          GALLEY_ROWS {
            const Float x_scale = all(float_at(scales[r]));
            GALLEY_WIDE y[r][c] = fma(to_float(acc[r][c]), scale[c] * x_scale, y[r][c]);
            if (!kMin) continue;
            Float x_sum = all(float_at(sums[r]));
            if (kSubs > 1) {
              const float sum = -0.125f * static_cast<float>(part_start(starts[r], blocks, sub));
              x_sum = x_scale * all(sum);
            }
            GALLEY_WIDE y[r][c] = fma(low[c], x_sum, y[r][c]);
          }
        }
        header += block_bytes;
        codes += code_bytes;
        scratch += kGroup * kPanel;
        q.advance(kGroup);
        starts.advance(4);
        sums.advance(4);
      }
      GALLEY_ROWS GALLEY_WIDE store(b.y + r * kPanel + (half + c) * kLanes, y[r][c]);
    }
  }

  static GALLEY_INLINE void prefetch_header(const uint8_t* at, int64_t bytes) {
    for (const uint8_t* end = at + bytes; at < end; at += 64) __builtin_prefetch(at, 0, 2);
  }

  // -8 * the sum of x in a part; `starts` is followed by the scaled sums and then by the halves.
  static GALLEY_INLINE int32_t part_start(const uint8_t* starts, int64_t blocks, int sub) {
    if (kSubs == 1) return word_at(starts);
    const int32_t first = word_at(starts + 8 * blocks);
    return sub == 0 ? first : word_at(starts) - first;
  }
};
template <int R> using Bytes32 = GroupedRows<Bytes<false>, 128, 1, false, R>;
template <int R> using Bytes32Min = GroupedRows<Bytes<false>, 128, 1, true, R>;
template <int R> using Bytes16 = GroupedRows<Bytes<false>, 128, 2, false, R>;
template <int R> using Bytes16Min = GroupedRows<Bytes<false>, 128, 2, true, R>;
template <int R> using Scratch = GroupedRows<Bytes<true>, 8, 1, false, R>;
template <int R> using ScratchMin = GroupedRows<Bytes<true>, 0, 1, true, R>;
template <int R> using Unpack = GroupedRows<Nibbles<false>, 8, 1, false, R>;
template <int R> using UnpackMin = GroupedRows<Nibbles<false>, 0, 1, true, R>;
template <int R> using UnpackKeep = GroupedRows<Nibbles<true>, 8, 1, false, R>;
template <int R> using UnpackKeepMin = GroupedRows<Nibbles<true>, 0, 1, true, R>;

// What becomes of y[rows][32] of a panel: bias, SiLU·mul, the output's number format.

GALLEY_INLINE int lanes_left(int64_t left) {
  return left >= kLanes ? kLanes : left > 0 ? static_cast<int>(left) : 0;
}

void add_bias(const float* bias, int64_t left, float* y, int rows) {
  for (int h = 0; h < kHalves; h++) {
    const Float b = load_part(bias + h * kLanes, lanes_left(left - h * kLanes));
    for (int r = 0; r < rows; r++) {
      float* at = y + r * kPanel + h * kLanes;
      store(at, load(at) + b);
    }
  }
}

// The first 16 columns of a panel are gate, the others up; out rows are `stride` floats apart.
void silu_mul(const float* y, int rows, float* out, int64_t stride) {
  for (int r = 0; r < rows; r++, y += kPanel, out += stride) {
    store(out, silu(load(y)) * load(y + kLanes));
  }
}

template <bool kAccumulate>
void store_f32(const float* y, int rows, int64_t width, float* out, int64_t stride) {
  for (int r = 0; r < rows; r++, y += kPanel, out += stride) {
    for (int64_t c = 0; c < width; c += kLanes) {
      const int part = lanes_left(width - c);
      Float value = load(y + c);
      if (part == kLanes) {
        if (kAccumulate) value = load(out + c) + value;
        store(out + c, value);
      } else {
        if (kAccumulate) value = load_part(out + c, part) + value;
        store_part(out + c, value, part);
      }
    }
  }
}

void store_bf16_rows(const float* y, int rows, int64_t width, uint8_t* out, int64_t bytes) {
  for (int r = 0; r < rows; r++, y += kPanel, out += bytes) {
    for (int64_t c = 0; c < width; c += kLanes) {
      store_bf16_part(reinterpret_cast<uint16_t*>(out) + c, load(y + c), lanes_left(width - c));
    }
  }
}

// Columns [column, column + width) of q8 rows, which are all of one group.
void store_group(const LinearJob& job, const float* y, int rows, int64_t row, int64_t column,
                 int64_t width) {
  for (int r = 0; r < rows; r++, y += kPanel) {
    const Q8Row q8 = q8_row_parts(job.out + (row + r) * job.out_bytes, job.out_columns);
    if (width == kGroup) {
      quantize_group(y, q8, column / kGroup);
    } else {
      quantize_group_tail(y, width, q8, column / kGroup);
    }
  }
}

// SiLU·mul leaves 16 columns of a panel; two panels make a group of q8, whose first half waits in
// `pair` [rows][32].
void finish(const LinearJob& job, int64_t panel, int64_t row, int rows, float* y, float* pair) {
  if (job.bias) add_bias(job.bias + panel * kPanel, job.weight.n - panel * kPanel, y, rows);
  int64_t full = kPanel, column = panel * kPanel;
  if (job.epilogue == Epilogue::silu_mul) {
    full = kLanes, column = panel * kLanes;
    if (job.out_kind == Kind::q8) {
      const bool second = panel % 2 == 1;
      silu_mul(y, rows, pair + (second ? kLanes : 0), kPanel);
      if (!second && column + kLanes < job.out_columns) return;
      y = pair, full = kGroup, column -= second ? kLanes : 0;
    } else {
      silu_mul(y, rows, y, kPanel);
    }
  }
  const int64_t left = job.out_columns - column, width = left < full ? left : full;
  if (job.out_kind == Kind::q8) return store_group(job, y, rows, row, column, width);
  uint8_t* out = job.out + row * job.out_bytes;
  if (job.out_kind == Kind::bf16) {
    return store_bf16_rows(y, rows, width, out + 2 * column, job.out_bytes);
  }
  auto store_rows = job.accumulate ? store_f32<true> : store_f32<false>;
  store_rows(y, rows, width, reinterpret_cast<float*>(out) + column, job.out_bytes / 4);
}

using RunBlock = void (*)(int rows, const Block&);

// Rows<R>::run for the R that the block has.
template <template <int> class Rows, int R> void run_block(int rows, const Block& b) {
  if (rows == R) return Rows<R>::run(b);
  if constexpr (R > 1) run_block<Rows, R - 1>(rows, b);
}

// How the row blocks of a panel are computed: the only one, the first of several, the others.
struct Kernel {
  RunBlock lone, first, other;
  int max_rows;
  bool first_sees_all;  // `first` prefetches the whole next panel, not half of it
};

template <template <int> class Rows, int kMax> constexpr Kernel same() {
  return {run_block<Rows, kMax>, run_block<Rows, kMax>, run_block<Rows, kMax>, kMax, false};
}

Kernel kernel_of(const WeightLayout& w) {
  const bool min = w.has_min;
  switch (w.format) {
    case Format::f32: return same<FloatRows, kWordRows>();
    case Format::bf16: return same<Bf16Rows, kWordRows>();
    case Format::i8:
      if (w.group == 0) return same<PerRow, kWordRows>();
      if (w.group == 16) return min ? same<Bytes16Min, kGroupRows>() : same<Bytes16, kGroupRows>();
      return min ? same<Bytes32Min, kGroupRows>() : same<Bytes32, kGroupRows>();
    case Format::i4: break;
  }
  constexpr int kMax = kGroupRows;
  if (min) {
    return {run_block<UnpackMin, kMax>, run_block<UnpackKeepMin, kMax>,
            run_block<ScratchMin, kMax>, kMax, true};
  }
  return {run_block<Unpack, kMax>, run_block<UnpackKeep, kMax>, run_block<Scratch, kMax>, kMax,
          true};
}

// Panel by panel; its rows in blocks of even size.
void linear_tile(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                 int64_t row_end, uint8_t* scratch) {
  const Kernel kernel = kernel_of(job.weight);
  const int64_t bytes = job.weight.panel_bytes(), rows = row_end - row_begin;
  const int64_t blocks = (rows + kernel.max_rows - 1) / kernel.max_rows;
  const int64_t size = rows / blocks, larger = rows % blocks;  // the first blocks have one more
  alignas(64) float y[kWordRows * kPanel];
  alignas(64) float pair[kChunkRows * kPanel];
  for (int64_t p = panel; p < panel + count; p++) {
    Block b{&job, job.panels + p * bytes, scratch, nullptr, {}, 0, y};
    int64_t row = row_begin;
    for (int64_t i = 0; i < blocks; i++) {
      const bool lone = blocks == 1, whole = lone || kernel.first_sees_all;
      b.x = job.x + row * job.x_bytes;
      b.distance = lone ? kAhead : bytes;
      b.prefetch = Prefetch{};
      if (whole && i == 0) {
        b.prefetch = {b.panel + b.distance, 128, 64};
      } else if (!whole && i < 2) {
        b.prefetch = {b.panel + bytes + i * (bytes / 2), 64, 0};
      }
      const int height = static_cast<int>(size + (i < larger));
      (lone ? kernel.lone : i == 0 ? kernel.first : kernel.other)(height, b);
      finish(job, p, row, height, y, pair + (row - row_begin) * kPanel);
      row += height;
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
