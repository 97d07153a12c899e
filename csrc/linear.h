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
// Packed weights: table (if any) | panels of 32 outputs (columns of x @ W.T), each contiguous:
//   f32      [k][32 columns]
//   bf16     [k / 2][32 columns][2]
//   codes    [k' / span] spans { header | [span / 32] blocks of codes }, the last one shorter
//
// A block is 32 values of k of each column, as lines of [32 columns][4] bytes:
//   8 bits   [8] lines; line j has values 4 j .. 4 j + 3 of the block ("step j")
//   4 bits   [4] lines; low nibbles: step j = 0 .. 3, high nibbles: step j + 4
//   5 bits   4 bits, then [1] line of fifth bits: bit j of byte b is that of value b of step j
//   6 bits   4 bits, then [2] lines of upper pairs of bits: bits 2 i, 2 i + 1 of byte b of line h are
//            those of value b of step 4 h + i
//   2 bits   [2] lines of pairs of bits, as the upper ones of 6 bits
//   3 bits   2 bits, then [1] line of third bits, as the fifth ones of 5 bits
//   1 bit    [1] line of bits, as the fifth ones of 5 bits
//   trits    [13] lines for eight blocks, each byte of which has five digits to base 3 (below)
//
// A header has `entries` scales of each column, entry e for values e * group .. of the span:
//   f16, bf16, f32   [entries][32] scales | [entries][32] mins or fractional zeros, if any
//   u6               [32] f16 | [32] f16 (of mins) | [12][32] bytes: eight 6-bit scales (A .. H) and
//                    eight 6-bit mins (a .. h), which those f16 are multiplied with, as
//                      0-3 EEAAAAAA ..   4-7 eeaaaaaa ..   8-11 eeeeEEEE ..
//   i8               [32] f16 | [entries][32] int8 scales, which those f16 are multiplied with
//   u4               [32] f16 | [32] f16 (of mins) | [16][32] bytes: a 4-bit scale, and in the high
//                    nibble a 4-bit min, which those f16 are multiplied with
//   s6               [32] f16 | [12][32] bytes: sixteen 6-bit scales (A .. P) plus 32, which those
//                    f16 are multiplied with, as
//                      0-3 MMAAAAAA ..   4-7 MMEEEEEE ..   8-11 MMIIIIII ..   of M, lowest bits first
//   e8m0             [entries][32] bytes e; the scale is 2^(e - 128)
//   e4m3             [32] f32 | [entries][32] E4M3 scales, which those f32 are multiplied with
//   halves           [entries][2] f32, of columns 0 .. 15 and 16 .. 31; padded to 64 bytes
//   nested           [32] int32 place | [2][factors] f32, of columns 0 .. 15 and 16 .. 31 | [entries][32]
//                    bytes; the scale is level[byte] * factor[(place + e) / 256] + the last factor
//   zeros, if any    [entries][32] bytes; of codes of up to 4 bits [entries][16], columns 16 .. 31 in
//                    the high nibbles; of up to 2 bits [entries][8], columns 8 i .. at bit 2 i
// The span is 256 for u6, i8, u4 and s6, else the group, at least 32; all of k where group is 0, and
// for e4m3 and nested.
//
// value = scale * level (+ min); min = -scale * zero where zeros are fractional;
// level = code - zero, or table[code]:
//   levels   int8 + 128 of the 16 codes of 4 bits, padded to 64 bytes
//   floats   [2^bits] f32, and [256] f32 levels of nested scales
// Missing columns have scale 0.
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

enum class Format : int {
  f32 = 0, bf16 = 1, i4 = 2, i5 = 3, i6 = 4, i8 = 5, i2 = 6, i3 = 7, i1 = 8, t2 = 9
};
constexpr int kFormats = 10;
// Codes 0 .. 2 of eight blocks, as TQ1_0 has them: digit n of byte 4 i + b of lines 0 .. 7 is value b of
// step i of block n; the next four lines have 80 values in runs of 16, the last one 16 in runs of 4. A
// byte is its number times 256 / 243, rounded up: digit n is the highest of the byte times 3^n, modulo
// 256.
constexpr int64_t kTritBlocks = 8, kTritLines = 13;
struct TritPlace {
  int64_t line, digit;
};
static inline TritPlace trit_place(int64_t block, int64_t step) {
  if (block < 5) return {step, block};
  const int64_t digit = 2 * (block - 5) + step / 4;
  return digit < 5 ? TritPlace{8 + step % 4, digit} : TritPlace{12, step - 4};
}
constexpr uint8_t kPowersOf3[5] = {1, 3, 9, 27, 81};

enum class Scale : int {
  f16 = 0, f32 = 1, bf16 = 2, u6 = 3, i8 = 4, u4 = 5, s6 = 6, e8m0 = 7, e4m3 = 8, halves = 9,
  nested = 10
};
constexpr int kScales = 11;
// One zero; a min per scale; a whole or a fractional zero per scale.
enum class Offset : int { zero = 0, min = 1, zeros = 2, fractions = 3 };
constexpr int kOffsets = 4;
enum class CodeTable : int { none = 0, levels = 1, floats = 2 };

// Sizes of a packed weight [n outputs, k inputs].
struct WeightLayout {
  Format format = Format::f32;
  int32_t group = 0;  // values per scale: 16, a multiple of 32, or 0 = all of them
  int32_t zero = 0;   // the code of level 0, unless there are zeros or a table
  Scale scale = Scale::f16;
  Offset offset = Offset::zero;
  CodeTable table = CodeTable::none;
  int64_t n = 0, k = 0;

  bool quantised() const { return format != Format::f32 && format != Format::bf16; }
  int64_t bits() const {
    switch (format) {
      case Format::i1: return 1;
      case Format::i2:
      case Format::t2: return 2;
      case Format::i3: return 3;
      case Format::i5: return 5;
      case Format::i6: return 6;
      case Format::i8: return 8;
      default: return 4;
    }
  }
  // Scales that are multiplied with those of a span.
  bool two_level() const {
    return scale == Scale::u6 || scale == Scale::i8 || scale == Scale::u4 || scale == Scale::s6 ||
           scale == Scale::e4m3;
  }
  int64_t super_bytes() const { return scale == Scale::e4m3 ? 4 : 2; }
  int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  int64_t blocks() const { return (k + kGroup - 1) / kGroup; }
  // Blocks that share a header, and its scales per column.
  int64_t span_blocks() const {
    if (group == 0 || scale == Scale::e4m3 || scale == Scale::nested) return blocks();
    return two_level() ? 256 / kGroup : group < kGroup ? 1 : group / kGroup;
  }
  int64_t spans() const { return (blocks() + span_blocks() - 1) / span_blocks(); }
  int64_t entries() const {
    return group == 0 ? 1 : (span_blocks() * kGroup + group - 1) / group;
  }
  // Scales of a row, of which the last may be for fewer values.
  int64_t scales() const { return group == 0 ? 1 : (k + group - 1) / group; }

  int64_t scale_bytes() const {
    if (scale == Scale::f32 || scale == Scale::halves) return 4;
    return two_level() || scale == Scale::e8m0 || scale == Scale::nested ? 1 : 2;
  }
  // Blocks that share a scale.
  int64_t scale_blocks() const { return group == 0 ? blocks() : group / kGroup; }
  // Of nested scales: a factor is for 256 of them in the order of rows, so that sixteen rows have at
  // most two more than whole runs; and what is added to all of them.
  int64_t factors() const { return round_up(16 * entries() / 256 + 3, 4); }
  int64_t nested_codes_at() const { return kPanel * 4 + 2 * factors() * 4; }
  int64_t scale_line_bytes() const { return scale == Scale::halves ? 8 : kPanel * scale_bytes(); }
  int64_t zero_bits() const { return bits() <= 2 ? 2 : bits() <= 4 ? 4 : 8; }
  int64_t zero_line_bytes() const { return kPanel * zero_bits() / 8; }
  // Where zeros begin in a header.
  int64_t zeros_at() const {
    switch (scale) {
      case Scale::u6: return kPanel * (2 + 2 + 12);
      case Scale::u4: return kPanel * (2 + 2 + 16);
      case Scale::s6: return kPanel * (2 + 12);
      case Scale::i8:
      case Scale::e4m3: return kPanel * (super_bytes() + entries());
      case Scale::halves: return round_up(entries() * scale_line_bytes(), 64);
      case Scale::nested: return nested_codes_at() + entries() * kPanel;
      default: break;
    }
    return entries() * scale_line_bytes() * (has_mins() ? 2 : 1);
  }
  int64_t header_bytes() const {
    const int64_t bytes =
        zeros_at() + (offset == Offset::zeros ? entries() * zero_line_bytes() : 0);
    return group == 0 ? round_up(bytes, 64) : bytes;
  }
  int64_t block_bytes() const {  // of trits: an eighth of eight blocks
    if (format == Format::t2) return kPanel * 4 * kTritLines / kTritBlocks;
    return kPanel * kGroup * bits() / 8;
  }
  // Of the panel: the header that a block belongs to, and the block's codes.
  int64_t header_at(int64_t block) const {
    const int64_t span = block / span_blocks();
    return span * (header_bytes() + span_blocks() * block_bytes());
  }
  int64_t block_at(int64_t block) const {
    return (block / span_blocks() + 1) * header_bytes() + block * block_bytes();
  }
  int64_t panel_bytes() const {
    if (format == Format::f32) return k * kPanel * 4;
    if (format == Format::bf16) return (k + 1) / 2 * kPanel * 4;
    return spans() * header_bytes() + blocks() * block_bytes();
  }
  int64_t table_bytes() const {
    if (table == CodeTable::none) return 0;
    return table == CodeTable::levels ? 64 : round_up(4 * table_floats(), 64);
  }
  int64_t table_floats() const { return (int64_t{1} << bits()) + (scale == Scale::nested ? 256 : 0); }
  int64_t bytes() const { return table_bytes() + panels() * panel_bytes(); }
  const uint8_t* panel(const uint8_t* data, int64_t number) const {
    return data + table_bytes() + number * panel_bytes();
  }

  // Whether kernels read any number of rows' blocks as they lie: a header for each, with scales of
  // one level; of 4-bit codes those around 8, or around 0 with mins. Other panels are repacked for
  // more rows than one block of them: to 8-bit codes, each block with a header of f32.
  bool plain_blocks() const {
    if (span_blocks() != 1 || two_level() || table != CodeTable::none) return false;
    return format == Format::i8 || (format == Format::i4 && group == 32 &&
                                    offset != Offset::zeros && zero == (has_mins() ? 0 : 8));
  }
  // Mins, or fractional zeros that give them.
  bool has_mins() const { return offset == Offset::min || offset == Offset::fractions; }
  int64_t parts() const { return group == 16 ? 2 : 1; }  // of a block, with a scale each
  int64_t repacked_zeros_at() const { return parts() * kPanel * 4 * (has_mins() ? 2 : 1); }
  int64_t repacked_header_bytes() const {
    return round_up(repacked_zeros_at() + (offset == Offset::zeros ? parts() * kPanel : 0), 64);
  }
  int64_t repacked_bytes() const { return blocks() * (repacked_header_bytes() + kGroup * kPanel); }

  // int8 with one scale per output, whose dot product with int8 of one scale is a sum of integers.
  bool per_output() const {
    return format == Format::i8 && group == 0 && zero == 128 && scale == Scale::f32 &&
           offset == Offset::zero && table == CodeTable::none;
  }
  // Floats of which whole blocks share a scale.
  bool in_spans() const {
    return table == CodeTable::floats && (format == Format::i4 || format == Format::i8) &&
           group != 16 && offset == Offset::zero && !two_level();
  }
  // Codes whose levels AMX multiplies with rows of bf16 (code_tiles.h).
  bool on_tiles() const {
    if (format == Format::i1 || format == Format::t2 || k % kGroup != 0) return false;
    if (offset == Offset::zeros && (format != Format::i4 || group == 16)) return false;
    return format == Format::i4 || table != CodeTable::floats;
  }
  // Whether activations of this kind can be multiplied with the weight; float8: its table is that of E4M3.
  bool accepts(Kind x, bool float8) const {
    if (!quantised()) return x == (format == Format::f32 ? Kind::f32 : Kind::bf16);
    if (x == Kind::q8_row) return per_output();
    if (x == Kind::bf16) return (on_tiles() || (float8 && in_spans())) && isa() == Isa::amx;
    return x == Kind::f32 || (in_groups(x) && table != CodeTable::floats);
  }
};

// The same from numbers; throws std::invalid_argument where there is no such format.
struct WeightNumbers {
  int64_t format = 0, n = 0, k = 0, group = 0, zero = 0, scale = 0, offset = 0, table = 0;
};
WeightLayout weight_layout(const WeightNumbers& numbers);
// From an op's arguments of these names.
WeightLayout weight_layout(const Args& args);

// Whether the table of a packed weight is that of E4M3, whose levels kernels can compute.
bool is_float8(const WeightLayout& w, const uint8_t* data);

// Of interleaved gate and up, GELU in its tanh form.
enum class Epilogue : int { none = 0, silu_mul = 1, gelu_mul = 2 };

struct AdapterAddend;
struct Elementwise;

// The computation of one linear op; see linear.cpp for the arguments.
struct LinearJob {
  WeightLayout weight;
  const uint8_t* data = nullptr;  // of the weight
  bool float8 = false;            // its table is that of E4M3
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
  const Elementwise* function = nullptr;  // of each number, before it is stored; or null
  const AdapterAddend* addend = nullptr;  // added to what is stored (adapters.h), or null
};

static inline bool is_gated(Epilogue e) { return e != Epilogue::none; }

constexpr int64_t kPiecePanels = 4;  // that go through a piece of K together

constexpr int64_t kExpandedBlocks = 4;  // that are float32 at a time

// Bytes of scratch memory that a tile needs (64-byte aligned).
static inline int64_t linear_scratch_bytes(const WeightLayout& w, Kind x) {
  if (w.quantised() && in_groups(x)) {
    if (!w.plain_blocks()) return w.repacked_bytes();
    return w.format == Format::i8 ? 0 : w.blocks() * kGroup * kPanel;
  }
  if (w.quantised() && x == Kind::bf16) {  // a row as float32, or eight twice as bf16; sums of x, read by 16 rows
    const int64_t sums = w.has_mins() ? w.blocks() * w.parts() * kChunkRows + 16 : 0;
    return round_up(4 * (8 * w.k + sums), 64);
  }
  const int64_t sums = kPiecePanels * kChunkRows * kPanel * 4;
  return w.quantised() ? sums + kExpandedBlocks * kGroup * kPanel * 4 : sums;
}

}  // namespace galley
