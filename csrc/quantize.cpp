// Op `quantize`: float32 rows to activation rows (bf16, q8, q8_row, q16).
// Pointers: x (f32), out. Ints: k, rows, x_stride (elements, default k), out_kind. Tile: 4 rows.
#include <algorithm>

#include "quantize_kernel.h"

namespace galley {
namespace {

class Quantize final : public Op {
 public:
  explicit Quantize(const Args& a)
      : x_(a.ptr<float>("x")), out_(a.ptr<uint8_t>("out")), k_(a.size("k")),
        x_stride_(a.i("x_stride", k_)), rows_(a.rows()), kind_(a.kind("out_kind")),
        out_bytes_(activation_bytes(kind_, k_)), kernel_(GALLEY_PICK(store_rows)) {
    if (x_stride_ < k_) throw std::invalid_argument("x_stride is less than k");
  }

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t first = begin * kTileRows;
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    kernel_(x_ + first * x_stride_, x_stride_, last - first, k_, kind_, out_ + first * out_bytes_);
  }

 private:
  static constexpr int64_t kTileRows = 4;  // that few are done sooner than a barrier
  const float* x_;
  uint8_t* out_;
  int64_t k_, x_stride_;
  Dim rows_;
  Kind kind_;
  int64_t out_bytes_;
  decltype(&generic::store_rows) kernel_;
};

GALLEY_OP(quantize, Quantize);

}  // namespace
}  // namespace galley
