// Op `layer_norm`: x[row] += add[row] (if given), out[row] = (x - mean) / sqrt(variance + eps) *
// weight + bias, with mean and variance of the whole row, or of each of the row's `heads` vectors by
// itself. Pointers: x (f32), add? (f32 [rows][heads * n]), weight?, bias? (f32 [n], or [heads * n]
// with per_head), out ([rows][heads * n] of out_kind), rounded? (the f32 rows of out as rounded_kind).
// Ints: n, heads? (default 1), per_head?, x_stride? (elements from row to row, default heads * n), rows,
// out_kind, rounded_kind?. Floats: eps. Tile: 4 rows.
#include "layer_norm_kernel.h"

#include <algorithm>

#include "quantize_variants.h"
#include "scratch.h"

namespace galley {
namespace {

class LayerNorm final : public Op {
 public:
  explicit LayerNorm(const Args& a)
      : x_(a.ptr<float>("x")), add_(a.ptr_or_null<float>("add")), out_(a.ptr<uint8_t>("out")),
        shape_{a.i("heads", 1), a.size("n"), static_cast<float>(a.f("eps")),
               a.ptr_or_null<float>("weight"), a.ptr_or_null<float>("bias"),
               a.choice("per_head", 2, 0) == 1},
        width_(shape_.heads * shape_.n), x_stride_(a.i("x_stride", width_)), rows_(a.rows()),
        kind_(a.kind("out_kind")), out_bytes_(activation_bytes(kind_, width_)),
        kernel_(GALLEY_PICK(layer_norm_row)), rounded_(a.ptr_or_null<uint8_t>("rounded")),
        rounded_kind_(a.kind("rounded_kind")), rounded_bytes_(activation_bytes(rounded_kind_, width_)),
        round_(GALLEY_PICK(store_rows)) {
    if (shape_.heads <= 0) throw std::invalid_argument("heads must be positive");
    if (x_stride_ < width_) throw std::invalid_argument("x_stride is less than heads * n");
    if (rounded_ && kind_ != Kind::f32) throw std::invalid_argument("rounded needs out_kind f32");
  }

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    float* scratch = thread_scratch(width_);
    for (int64_t r = begin * kTileRows; r < last; r++) {
      kernel_(shape_, x_ + r * x_stride_, add_ ? add_ + r * width_ : nullptr, scratch, kind_,
              out_ + r * out_bytes_);
    }
    if (!rounded_) return;
    const int64_t first = begin * kTileRows;
    round_(reinterpret_cast<float*>(out_) + first * width_, width_, last - first, width_,
           rounded_kind_, rounded_ + first * rounded_bytes_);
  }

 private:
  static constexpr int64_t kTileRows = 4;
  float* x_;
  const float* add_;
  uint8_t* out_;
  LayerNormShape shape_;
  int64_t width_, x_stride_;
  Dim rows_;
  Kind kind_;
  int64_t out_bytes_;
  decltype(&generic::layer_norm_row) kernel_;
  uint8_t* rounded_;
  Kind rounded_kind_;
  int64_t rounded_bytes_;
  decltype(&generic::store_rows) round_;
};

GALLEY_OP(layer_norm, LayerNorm);

}  // namespace
}  // namespace galley
