// Low-rank adapters (LoRA) of a step's rows: y += scale * B (A x), with an adapter of its own for
// each sequence, or none.
//
// Python keeps a table with a row for each adapter in memory (galley/kernels/adapters.py). Of all
// the model's matrices A ("inputs": I of them) and B ("outputs"):
//
//   | addresses of A, I | their ranks, I | scales, I (float in the low half) | addresses of B, O |
//   | addresses of gains and shifts, O; 0 = none |
//   | addresses of whole matrices, of those that may have one; 0 = none | whether it has gains |
//
// An adapter that leaves a layer as it is has rank 0 there. A, B and whole matrices [n][k] are stored
// in panels of 16 outputs: of bf16 [ceil(n / 16)][pairs][16][2], of f32 [ceil(n / 16)][pairs][2][16],
// with pairs = ceil(k / 2), and zeros where there are no numbers. Those of one table are alike. After
// the last B are 1 KB of zeros: tiles are loaded as a whole. Gains and shifts (DoRA, biases) are f32,
// [ceil(n / 16)][2][16]: y = gain * y + B (A x) + shift.
//
// "Low" is scale * A x, of the number format of x: [rows][inputs][max_rank] of f32, or of bf16 with a
// multiple of 32 numbers for each input, of which those after the rank are 0 up to such a multiple.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "program.h"
#include "variants.h"

namespace galley {

constexpr int64_t kAdapterPanel = 16;  // outputs
constexpr int64_t kLowBlock = 32;      // numbers of low of bf16, of a tile

static inline int64_t adapter_panel_bytes(int64_t k, bool bf16) {
  return (k + 1) / 2 * kAdapterPanel * (bf16 ? 4 : 8);
}

// A with its scale.
struct AdapterInput {
  const uint8_t* a = nullptr;
  int64_t rank = 0;
  float scale = 0;
};

class AdapterTable {
 public:
  explicit AdapterTable(const Args& a)
      : data_(a.ptr<int64_t>("adapters")), width_(a.size("width")), inputs_(a.size("all_inputs")),
        outputs_(a.size("all_outputs")), bf16(a.choice("bf16", 2, false)) {}
  AdapterInput input(int32_t place, int64_t i) const {
    const int64_t* row = data_ + place * width_;
    AdapterInput in{address(row[i]), row[inputs_ + i], 0};
    std::memcpy(&in.scale, row + 2 * inputs_ + i, sizeof in.scale);
    return in;
  }
  const uint8_t* output(int32_t place, int64_t i) const {
    return address(data_[place * width_ + 3 * inputs_ + i]);
  }
  // Gains and shifts; null = none.
  const float* affine(int32_t place, int64_t i) const {
    return reinterpret_cast<const float*>(address(data_[place * width_ + 3 * inputs_ + outputs_ + i]));
  }
  // Whether any of its outputs have gains and shifts.
  bool has_affine(int32_t place) const { return data_[(place + 1) * width_ - 1] != 0; }
  // The whole matrix of a column of the table; null = the adapter has none.
  const uint8_t* copy(int32_t place, int64_t column) const {
    return address(data_[place * width_ + column]);
  }
  // Throws std::invalid_argument for a column that is not one of a whole matrix.
  void check_column(int64_t column) const {
    if (column < 3 * inputs_ + 2 * outputs_ || column >= width_ - 1) {
      throw std::invalid_argument("copy lies outside of the table");
    }
  }

 private:
  static const uint8_t* address(int64_t value) {
    return reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(value));
  }
  const int64_t* data_;
  int64_t width_, inputs_, outputs_;

 public:
  bool bf16;
};

// The step's rows of a dimension (tokens or logits) that have an adapter, in groups of one adapter.
// How they are grouped changes no bit: each row is computed by itself.
class AdapterRows final : public Plan {
 public:
  struct Geometry {
    int32_t dimension;
    ColumnOf<int32_t> adapter;  // by slot: place in the table, -1 = none
    bool operator==(const Geometry& o) const {
      return dimension == o.dimension && adapter == o.adapter;
    }
  };
  struct Group {
    int32_t place, first, count;  // rows[first] .. rows[first + count - 1]
  };
  static constexpr int32_t kMostRows = 32;  // of a group
  static constexpr int32_t kNone = -1;

  explicit AdapterRows(const Geometry& geometry) : geometry_(geometry) {}
  const Geometry& geometry() const { return geometry_; }

  std::vector<int32_t> rows;
  std::vector<Group> groups;
  // By row of the dimension: the place of its adapter, and the next row of the same; kNone. And the
  // first row after it whose place is another.
  std::vector<int32_t> place, next, same_until;

 protected:
  void make(const Step& step, int threads) override;

 private:
  Geometry geometry_;
};

// Throws std::invalid_argument for a dimension that adapters know no sequence of.
AdapterRows* adapter_rows(const Args& a);

// Outputs of a layer that one B adds to.
struct AdapterPart {
  int32_t input, outputs, column, step;
  int64_t panels() const { return (outputs + kAdapterPanel - 1) / kAdapterPanel; }
};

// The argument `parts`. Throws std::invalid_argument for one outside of a row of out.
std::vector<AdapterPart> adapter_parts(const Args& a, int64_t inputs, int64_t out_stride);

// Low of a layer's rows.
class LowRows {
 public:
  LowRows(void* data, Kind kind, int64_t inputs, int64_t max_rank)
      : kind(kind), data_(static_cast<uint8_t*>(data)),
        input_bytes_(kind == Kind::bf16 ? (max_rank + kLowBlock - 1) / kLowBlock * kLowBlock * 2
                                        : max_rank * 4),
        row_bytes_(inputs * input_bytes_) {}
  uint8_t* at(int64_t row, int64_t input) const {
    return data_ + row * row_bytes_ + input * input_bytes_;
  }
  int64_t row_bytes() const { return row_bytes_; }
  // Store a panel of a row: scale * values[16] as numbers [first, first + 16) of the rank.
  void store(int64_t row, int64_t input, int64_t first, int64_t rank, const float* values,
             float scale) const;

  Kind kind;

 private:
  uint8_t* data_;
  int64_t input_bytes_, row_bytes_;
};

struct ShrinkJob {
  const uint8_t* a;  // a panel
  int64_t k;
  bool bf16;         // a
  Kind x_kind;       // f32 or bf16
};

struct ExpandJob {
  const uint8_t* b;  // panels
  int64_t k, n;
  bool bf16;         // b
  Kind x_kind;       // f32 or bf16
  int64_t step;      // columns from panel to panel
  const float* affine = nullptr;  // gains and shifts
};

// The terms that the adapters of a linear layer's rows add to its outputs before it stores them.
struct AdapterAddend {
  // 16 outputs of the layer, which are half a panel of its weight: a panel of one part.
  struct Half {
    int32_t part = -1, panel = 0;
  };
  AdapterTable table;
  const AdapterRows* rows;
  std::vector<AdapterPart> parts;
  std::vector<Half> halves;  // of the weight's panels
  LowRows low;
  int64_t first_input, first_output;
  bool any_affine = false;   // an adapter of the step has gains and shifts
};

GALLEY_VARIANTS(
    // sums[i][16] = a panel of A · x[i]. A sum's order depends on k alone.
    void adapter_shrink(const ShrinkJob& job, const uint8_t* const* x, int64_t rows, float* sums);
    // out[i][step * p + j] += sum over k of x[i][k] * B[16 p + j][k], for panels p. With gains and
    // shifts: out = out * gain + sum + shift.
    void adapter_expand(const ExpandJob& job, int64_t first, int64_t panels,
                        const uint8_t* const* x, int64_t rows, float* const* out);
    // The same for y[rows][32] of a panel of a layer's weight, of rows [row, row + rows), and for all
    // adapters, or those with gains and shifts.
    void adapter_add(const AdapterAddend& addend, int64_t panel, int64_t row, int64_t rows, float* y,
                     bool affine_only);)
GALLEY_TILE_VARIANT(
    void adapter_shrink(const ShrinkJob& job, const uint8_t* const* x, int64_t rows, float* sums);
    void adapter_expand(const ExpandJob& job, int64_t first, int64_t panels,
                        const uint8_t* const* x, int64_t rows, float* const* out);)

}  // namespace galley
