// Layouts shared by everything that makes or reads linear's inputs: activation rows and packed
// weights. They are the same for every instruction set.
//
// Activation rows, one after the other at `activation_bytes`:
//   f32, bf16   [k]
//   q8, q16     [k' / 32] groups of q | [k' / 32] each of f32 scale, int32 start, f32 scaled_sum,
//               int32 half; value = scale * q; start = -8 * sum of q, from which a dot product with
//               codes around 8 starts; half = the same of the group's first 16;
//               scaled_sum = scale * sum of q
//     q8        a group: [32] int8 q
//     q16       a group: [32] int8 hi | [32] int8 lo, its two planes; q = 256 * hi + lo
//   q8_row      [k'] int8 | f32 scale | int32 sum
// k' is k rounded up to 32, the tail is 0; rows of integers are padded to 64 bytes.
//
// Packed weights, in panels of 32 outputs (columns of x @ W.T); a panel is one contiguous run:
//   f32           [k][32 columns]
//   bf16          [k / 2][32 columns][2]
//   i8 per row    [32] f32 scale | [k' / 4][32 columns][4]
//   i8 in groups  [k' / 32] blocks { scales | mins | [8][32 columns][4] }
//   i4 in groups  [k' / 32] blocks { scales | mins | [4][32 columns][4] bytes: the low nibbles are
//                                    step j = 0 .. 3 of four values of k, the high ones step j + 4 }
// scales, mins (if any): [32 / group][32 columns] f16 or f32. value = scale * (code - zero) + min,
// zero = 128 for i8; 8 for i4, or 0 where i4 has mins. Missing columns have scale 0.
#pragma once
#include <cstdint>

#include "program.h"

namespace galley {

constexpr int64_t kGroup = 32;  // values per activation scale and per weight block
constexpr int64_t kPanel = 32;  // columns per weight panel
constexpr int64_t kChunkRows = 240;  // rows that a tile holds at most: x, or a piece of it, stays in
                                     // the L2 cache

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline int64_t activation_bytes(Kind kind, int64_t k) {
  const int64_t padded = round_up(k, kGroup);
  switch (kind) {
    case Kind::f32: return 4 * k;
    case Kind::bf16: return 2 * k;
    case Kind::q8: return round_up(padded + padded / kGroup * 16, 64);
    case Kind::q16: return round_up(2 * padded + padded / kGroup * 16, 64);
    case Kind::q8_row: return round_up(padded + 8, 64);
  }
  return 0;
}

// Kinds with a scale per group of 32.
static inline bool in_groups(Kind kind) { return kind == Kind::q8 || kind == Kind::q16; }

// Where the parts of one row of q8 or q16 lie.
struct GroupedRow {
  int planes;  // of 32 bytes each, per group
  int8_t* q;
  float* scale;
  int32_t* start;
  float* scaled_sum;
  int32_t* half;
};

static inline GroupedRow grouped_row(void* row, Kind kind, int64_t k) {
  const int64_t groups = round_up(k, kGroup) / kGroup;
  const int planes = kind == Kind::q16 ? 2 : 1;
  int8_t* q = static_cast<int8_t*>(row);
  float* scale = reinterpret_cast<float*>(q + groups * planes * kGroup);
  int32_t* start = reinterpret_cast<int32_t*>(scale + groups);
  float* scaled_sum = reinterpret_cast<float*>(start + groups);
  return {planes, q, scale, start, scaled_sum, reinterpret_cast<int32_t*>(scaled_sum + groups)};
}

enum class Format : int { f32 = 0, bf16 = 1, i8 = 2, i4 = 3 };

// Sizes of a packed weight [n outputs, k inputs].
struct WeightLayout {
  Format format = Format::f32;
  int32_t group = 0;  // values per scale: 32, 16 (i8 only) or 0 = one scale per output (i8 only)
  bool scale_f32 = false, has_min = false;
  int64_t n = 0, k = 0;

  bool quantised() const { return format == Format::i8 || format == Format::i4; }
  int32_t zero() const { return format == Format::i8 ? 128 : has_min ? 0 : 8; }
  int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  int64_t blocks() const { return (k + kGroup - 1) / kGroup; }
  int64_t scales_per_block() const { return group == 0 ? 0 : group == 16 ? 2 : 1; }
  int64_t scale_line_bytes() const { return kPanel * (scale_f32 ? 4 : 2); }
  // Scales, then mins.
  int64_t header_bytes() const {
    return scales_per_block() * scale_line_bytes() * (has_min ? 2 : 1);
  }
  int64_t block_bytes() const {
    return header_bytes() + kPanel * kGroup / (format == Format::i4 ? 2 : 1);
  }
  int64_t panel_bytes() const {
    if (format == Format::f32) return k * kPanel * 4;
    if (format == Format::bf16) return (k + 1) / 2 * kPanel * 4;
    return (group == 0 ? kPanel * 4 : 0) + blocks() * block_bytes();
  }
  int64_t bytes() const { return panels() * panel_bytes(); }
  // Whether activation rows of this kind can meet the weight.
  bool accepts(Kind x) const {
    if (!quantised()) return x == (format == Format::f32 ? Kind::f32 : Kind::bf16);
    return group == 0 ? x == Kind::q8_row : in_groups(x);
  }
};

// Throws std::invalid_argument where there is no such format.
WeightLayout weight_layout(Format format, int64_t n, int64_t k, int64_t group, bool scale_f32,
                           bool has_min);
// From an op's arguments n, k, format, group, scale, has_min.
WeightLayout weight_layout(const Args& args);

enum class Epilogue : int { none = 0, silu_mul = 1 };

// What one linear op computes; see linear.cpp for the arguments.
struct LinearJob {
  WeightLayout weight;
  const uint8_t* panels = nullptr;
  const uint8_t* x = nullptr;
  Kind x_kind = Kind::f32;
  int64_t x_bytes = 0;          // from row to row
  const float* bias = nullptr;  // or null
  uint8_t* out = nullptr;
  int64_t out_bytes = 0;        // from row to row
  int64_t out_columns = 0;
  Kind out_kind = Kind::f32;
  bool accumulate = false;
  Epilogue epilogue = Epilogue::none;
};

constexpr int64_t kPiecePanels = 4;  // that go through a piece of K together

// Bytes of scratch memory that a tile needs (64-byte aligned).
static inline int64_t linear_scratch_bytes(const WeightLayout& w) {
  if (w.format == Format::i4) return w.blocks() * kGroup * kPanel;
  if (w.quantised() && w.group != 0) return 0;
  return kPiecePanels * kChunkRows * kPanel * 4;
}

}  // namespace galley
