// Between arrays of a checkpoint and the packed weights of linear.h, without loss either way.
#pragma once
#include "linear.h"

namespace galley {

struct BlockType;  // blocks.h

// A weight before packing, row by row. Strides are in elements.
struct DenseSource {
  const void* values = nullptr;  // f32 or bf16 [n][stride]
  bool bf16 = false;
  int64_t stride = 0;
};
// Codes, and what the layout has besides; rows are contiguous.
struct CodeSource {
  const uint8_t* q = nullptr;          // [n][k]
  const void* scale = nullptr;         // [n][scales] in the layout's number format: f32 for halves; bytes
                                       // for scales of two levels (s6 signed) and e8m0
  const void* min = nullptr;           // the same
  const uint8_t* zeros = nullptr;      // [n][scales]
  const void* super_scale = nullptr;   // f16 (f32 of e4m3) [n][spans], of scales of two levels; of nested
                                       // ones f32 [n / 16, rounded up][factors]
  const void* super_min = nullptr;     // the same, of u6 and u4; of nested scales int32 [n] places
  const void* table = nullptr;         // int8 [16] levels or f32 [table_floats]
};
// Where unpack_codes writes the same.
struct CodeTarget {
  uint8_t* q = nullptr;
  void *scale = nullptr, *min = nullptr;
  uint8_t* zeros = nullptr;
  void *super_scale = nullptr, *super_min = nullptr;
  void* table = nullptr;
};

// f32 values to a bf16 weight are rounded to nearest even; all else is exact.
void pack_dense(const WeightLayout& w, const DenseSource& source, uint8_t* out);
// Throws std::invalid_argument where a code, zero or scale does not fit its bits, or an array is
// missing.
void pack_codes(const WeightLayout& w, const CodeSource& source, uint8_t* out);
// Rows [n] of blocks, by their addresses, to a weight of type.layout(n, k).
void pack_blocks(const BlockType& type, const uint64_t* rows, int64_t n, int64_t k, uint8_t* out);

// Row `row` as float32 [k]: exactly the values that linear multiplies.
void unpack_row(const WeightLayout& w, const uint8_t* data, int64_t row, float* out);
void unpack_codes(const WeightLayout& w, const uint8_t* data, const CodeTarget& target);

}  // namespace galley
