// Between arrays of a checkpoint and the panels of linear.h, without loss in either direction.
#pragma once
#include "linear.h"

namespace galley {

// A weight before packing, row by row. Strides are in elements.
struct DenseSource {
  const void* values = nullptr;  // f32 or bf16 [n][stride]
  bool bf16 = false;
  int64_t stride = 0;
};
// value = scale * (q - zero) + min; groups of the layout (one per output where group is 0).
struct CodeSource {
  const uint8_t* q = nullptr;    // [n][q_stride]
  int64_t q_stride = 0;
  int32_t zero = 0;
  const void* scale = nullptr;   // f16 or f32, as the layout says: [n][scale_stride]
  const void* min = nullptr;     // the same, or null
  int64_t scale_stride = 0;
};

// f32 values to a bf16 weight are rounded to nearest even; all else is exact.
void pack_dense(const WeightLayout& w, const DenseSource& source, uint8_t* out);
// Throws std::invalid_argument where a code does not fit: q - zero in int8, or in 4 bits.
void pack_codes(const WeightLayout& w, const CodeSource& source, uint8_t* out);

// Row `row` as float32 [k]: exactly the values that linear multiplies.
void unpack_row(const WeightLayout& w, const uint8_t* panels, int64_t row, float* out);
// The codes (around w.zero()), scales and mins of row `row`.
void unpack_codes(const WeightLayout& w, const uint8_t* panels, int64_t row, uint8_t* q,
                  void* scale, void* min);

}  // namespace galley
