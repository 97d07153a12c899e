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
constexpr int kWordRows = 12, kGroupRows = 6, kNibbleRows = 4, kWide = 2;
#elif GALLEY_PARTS == 2
constexpr int kWordRows = 4, kGroupRows = 2, kNibbleRows = 2, kWide = 1;
#else
constexpr int kWordRows = 4, kGroupRows = 2, kNibbleRows = 2, kWide = 1;
#endif
constexpr int64_t kAhead = 4096;  // bytes that a lone row block prefetches ahead

// What linear_tile was asked for.
struct Tile {
  const LinearJob* job;
  int64_t panel, count, row_begin, row_end;
  float* pair;            // [rows][32], see finish
};

// What one block of rows computes: y[rows][32].
struct Block {
  const LinearJob* job;
  const uint8_t* panel;   // packed weights
  const uint8_t* scratch; // i4: the panel's codes as bytes, or null to unpack them in registers
  const uint8_t* x;       // the first row
  Prefetch prefetch;
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
    if (prefetch.at) {
      __builtin_prefetch(prefetch.at, 0, 2);
      __builtin_prefetch(prefetch.at + prefetch.second, 0, 2);
      prefetch.at += prefetch.step;
    }
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
        acc[r][c] = start<128>(word_at(b.x + r * x_bytes + padded + 4));
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

// How the codes of a block of 32 k are read: as bytes (i8, or i4 unpacked into scratch) or as
// nibbles. Calls use(j, column words) for steps j of four k in [first, last).
struct Bytes {
  template <class Use>
  static GALLEY_INLINE void each(const uint8_t* codes, int first, int last, const Use& use) {
#pragma GCC unroll 8
    for (int j = first; j < last; j++) {
      Int column[kWide];
      GALLEY_WIDE column[c] = words(codes + (j * kHalves + c) * 64);
      use(j, column);
    }
  }
};
struct Nibbles {
  template <class Use>
  static GALLEY_INLINE void each(const uint8_t* codes, int, int, const Use& use) {
    const Int low = all(0x0f0f0f0f);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      Int first[kWide], second[kWide];
      GALLEY_WIDE {
        const Int both = words(codes + (j * kHalves + c) * 64);
        first[c] = both & low;
        second[c] = shift_right<4>(both) & low;
      }
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
    const int64_t code_bytes = b.scratch ? kGroup * kPanel : w.block_bytes();
    const uint8_t* code_base = b.scratch ? b.scratch : b.panel + w.header_bytes();
    const int64_t block_bytes = w.block_bytes(), line = w.scale_line_bytes();
    const int64_t prefetched = block_bytes * b.prefetch.step / 128;
    const bool f32 = w.scale_f32;
    Prefetch prefetch = b.prefetch;
    for (int half = 0; half < kHalves; half += kWide) {
      const uint8_t* header = b.panel;
      const uint8_t* codes = code_base + half * 64;
      const uint8_t* side = b.x + blocks * kGroup;
      RowPointers<R> q(b.x, stride), scales(side, stride), sums(side + 4 * blocks, stride);
      Float y[R][kWide];
      GALLEY_ROWS GALLEY_WIDE y[r][c] = zero();
      for (const uint8_t* end = side + 4 * blocks; scales[0] < end; scales.advance(4)) {
        advance(prefetch, prefetched);
#pragma GCC unroll 2
        for (int sub = 0; sub < kSubs; sub++) {
          Int acc[R][kWide];
          GALLEY_ROWS {
            const int32_t sum = part_sum(sums[r], blocks, sub);
            GALLEY_WIDE acc[r][c] = start<kZero>(sum);
          }
          Codes::each(codes, sub * 8 / kSubs, (sub + 1) * 8 / kSubs,
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
            const Float x_sum = x_scale * to_float(all(part_sum(sums[r], blocks, sub)));
            GALLEY_WIDE y[r][c] = fma(low[c], x_sum, y[r][c]);
          }
        }
        header += block_bytes;
        codes += code_bytes;
        q.advance(kGroup);
        sums.advance(4);
      }
      GALLEY_ROWS GALLEY_WIDE store(b.y + r * kPanel + (half + c) * kLanes, y[r][c]);
    }
  }

  // Of a q8 row whose sums are at `sums`, and its halves after them.
  static GALLEY_INLINE int32_t part_sum(const uint8_t* sums, int64_t blocks, int sub) {
    if (kSubs == 1) return word_at(sums);
    const int32_t first = word_at(sums + 4 * blocks);
    return sub == 0 ? first : word_at(sums) - first;
  }
};
template <int R> using Bytes32 = GroupedRows<Bytes, 128, 1, false, R>;
template <int R> using Bytes32Min = GroupedRows<Bytes, 128, 1, true, R>;
template <int R> using Bytes16 = GroupedRows<Bytes, 128, 2, false, R>;
template <int R> using Bytes16Min = GroupedRows<Bytes, 128, 2, true, R>;
template <int R> using Scratch32 = GroupedRows<Bytes, 8, 1, false, R>;
template <int R> using Scratch32Min = GroupedRows<Bytes, 0, 1, true, R>;
template <int R> using Nibbles32 = GroupedRows<Nibbles, 8, 1, false, R>;
template <int R> using Nibbles32Min = GroupedRows<Nibbles, 0, 1, true, R>;

// All codes of an i4 panel as bytes, [k' / 4][32 columns][4].
void unpack_nibbles(const WeightLayout& w, const uint8_t* panel, uint8_t* scratch) {
  const Int low = all(0x0f0f0f0f);
  const int64_t header = w.header_bytes(), block_bytes = w.block_bytes();
  for (int64_t g = 0; g < w.blocks(); g++, panel += block_bytes, scratch += kGroup * kPanel) {
    for (int i = 0; i < 4 * kHalves; i++) {
      const uint8_t* line = panel + header + i * 64;
      __builtin_prefetch(line + kAhead, 0, 2);
      const Int both = words(line);
      store(reinterpret_cast<int32_t*>(scratch) + i * kLanes, both & low);
      store(reinterpret_cast<int32_t*>(scratch) + (i + 4 * kHalves) * kLanes,
            shift_right<4>(both) & low);
    }
  }
}

GALLEY_INLINE void store_columns(const LinearJob& job, int64_t row, int64_t column,
                                 const Float& value, int64_t left) {
  if (left <= 0) return;
  const int part = left < kLanes ? static_cast<int>(left) : kLanes;
  uint8_t* out = job.out + row * job.out_bytes;
  if (job.out_kind == Kind::bf16) {
    store_bf16_part(reinterpret_cast<uint16_t*>(out) + column, value, part);
    return;
  }
  float* to = reinterpret_cast<float*>(out) + column;
  if (part == kLanes) {
    store(to, job.accumulate ? load(to) + value : value);
  } else {
    store_part(to, job.accumulate ? load_part(to, part) + value : value, part);
  }
}

void store_group(const LinearJob& job, int64_t row, int64_t group, const float* values,
                 int64_t count) {
  const Q8Row q8 = q8_row_parts(job.out + row * job.out_bytes, job.out_columns);
  int8_t* q = q8.q + group * kGroup;
  q8.scale[group] = count >= kGroup
      ? quantize_group(values, q, q8.sum + group, q8.half + group)
      : quantize_group_tail(values, count, q, q8.sum + group, q8.half + group);
}

// The plain case: whole panels, float32 out.
template <bool kBias, bool kAccumulate>
void finish_f32(const float* y, int rows, const float* bias, float* out, int64_t stride) {
  Float b[kHalves] = {};
  for (int h = 0; h < kHalves; h++) {
    if (kBias) b[h] = load(bias + h * kLanes);
  }
  for (int r = 0; r < rows; r++, y += kPanel, out += stride) {
    for (int h = 0; h < kHalves; h++) {
      Float value = load(y + h * kLanes);
      if (kBias) value = value + b[h];
      if (kAccumulate) value = load(out + h * kLanes) + value;
      store(out + h * kLanes, value);
    }
  }
}

// y[rows][32] of a panel → bias, SiLU·mul, the output's number format. SiLU·mul leaves 16 columns
// of a panel; two panels of them make a group of q8, collected in `pair` [rows][32].
void finish(const LinearJob& job, int64_t panel, int64_t row, int rows, float* y, float* pair) {
  const bool silu_mul = job.epilogue == Epilogue::silu_mul;
  const int width = silu_mul ? kLanes : kPanel;
  const int64_t column = panel * width, left = job.out_columns - column;
  if (!silu_mul && job.out_kind == Kind::f32 && left >= kPanel) {
    const float* bias = job.bias ? job.bias + column : nullptr;
    float* out = reinterpret_cast<float*>(job.out + row * job.out_bytes) + column;
    auto run = bias ? (job.accumulate ? finish_f32<true, true> : finish_f32<true, false>)
                    : (job.accumulate ? finish_f32<false, true> : finish_f32<false, false>);
    return run(y, rows, bias, out, job.out_bytes / 4);
  }
  for (int r = 0; r < rows; r++, y += kPanel) {
    Float value[kHalves] = {load(y), load(y + kLanes)};
    if (job.bias) {
      for (int h = 0; h < kHalves; h++) {
        const int64_t first = panel * kPanel + h * kLanes, some = job.weight.n - first;
        const int part = some >= kLanes ? kLanes : some > 0 ? static_cast<int>(some) : 0;
        value[h] = value[h] + load_part(job.bias + first, part);
      }
    }
    if (silu_mul) value[0] = silu(value[0]) * value[1];
    if (job.out_kind == Kind::q8) {
      const bool second = silu_mul && panel % 2 == 1;
      float* group = silu_mul ? pair + r * kPanel : y;
      store(group + (second ? kLanes : 0), value[0]);
      if (!silu_mul) store(y + kLanes, value[1]);
      const bool complete = !silu_mul || second || left <= kLanes;
      const int64_t start = column - (second ? kLanes : 0);
      if (complete) store_group(job, row + r, start / kGroup, group, job.out_columns - start);
      continue;
    }
    store_columns(job, row + r, column, value[0], left);
    if (!silu_mul) store_columns(job, row + r, column + kLanes, value[1], left - kLanes);
  }
}

// Rows<R>::run for the R that the block has.
template <template <int> class Rows, int R> void run_block(int rows, const Block& b) {
  if (rows == R) return Rows<R>::run(b);
  if constexpr (R > 1) run_block<Rows, R - 1>(rows, b);
}

// Some rows of panels [panel, panel + count): in blocks of even size, at most kMax rows each.
template <template <int> class Rows, int kMax>
void run_panels(const Tile& t, const uint8_t* scratch) {
  const LinearJob& job = *t.job;
  const int64_t bytes = job.weight.panel_bytes(), rows = t.row_end - t.row_begin;
  const int64_t blocks = (rows + kMax - 1) / kMax;
  const int64_t size = rows / blocks, larger = rows % blocks;  // the first blocks have one more
  alignas(64) float y[kMax * kPanel];
  for (int64_t p = t.panel; p < t.panel + t.count; p++) {
    const uint8_t* panel = job.panels + p * bytes;
    int64_t row = t.row_begin;
    for (int64_t i = 0; i < blocks; i++) {
      Prefetch prefetch;
      if (blocks == 1) {
        prefetch = {panel + kAhead, 128, 64};
      } else if (i < 2) {
        prefetch = {panel + bytes + i * (bytes / 2), 64, 0};
      }
      const int height = static_cast<int>(size + (i < larger));
      run_block<Rows, kMax>(
          height, Block{&job, panel, scratch, job.x + row * job.x_bytes, prefetch, y});
      finish(job, p, row, height, y, t.pair + (row - t.row_begin) * kPanel);
      row += height;
    }
  }
}

void run_i4(const Tile& t, uint8_t* scratch) {
  const WeightLayout& w = t.job->weight;
  if (t.row_end - t.row_begin <= kNibbleRows) {
    auto run = w.has_min ? run_panels<Nibbles32Min, kNibbleRows>
                         : run_panels<Nibbles32, kNibbleRows>;
    return run(t, nullptr);
  }
  auto run = w.has_min ? run_panels<Scratch32Min, kGroupRows> : run_panels<Scratch32, kGroupRows>;
  Tile one = t;
  one.count = 1;
  for (; one.panel < t.panel + t.count; one.panel++) {
    unpack_nibbles(w, t.job->panels + one.panel * w.panel_bytes(), scratch);
    run(one, scratch);
  }
}

void run_i8(const Tile& t) {
  const WeightLayout& w = t.job->weight;
  auto run = w.group == 0    ? run_panels<PerRow, kWordRows>
             : w.group == 16 ? (w.has_min ? run_panels<Bytes16Min, kGroupRows>
                                          : run_panels<Bytes16, kGroupRows>)
                             : (w.has_min ? run_panels<Bytes32Min, kGroupRows>
                                          : run_panels<Bytes32, kGroupRows>);
  run(t, nullptr);
}

void linear_tile(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                 int64_t row_end, uint8_t* scratch) {
  alignas(64) float pair[kChunkRows * kPanel];
  const Tile tile{&job, panel, count, row_begin, row_end, pair};
  switch (job.weight.format) {
    case Format::f32: return run_panels<FloatRows, kWordRows>(tile, nullptr);
    case Format::bf16: return run_panels<Bf16Rows, kWordRows>(tile, nullptr);
    case Format::i8: return run_i8(tile);
    case Format::i4: return run_i4(tile, scratch);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
