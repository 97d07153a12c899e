// Op `quantize`: float32 rows to activation rows (bf16, q8, q8_row).
// Pointers: x (f32), out. Ints: k, rows, x_stride (elements, default k), out_kind. Tile: 4 rows.
#include <algorithm>

#include "quantize_row.h"

namespace galley {
namespace {

class Quantize final : public Op {
 public:
  explicit Quantize(const Args& a)
      : x_(a.ptr<float>("x")), out_(a.ptr<uint8_t>("out")), k_(a.size("k")),
        x_stride_(a.i("x_stride", k_)), rows_(a.rows()), kind_(a.kind("out_kind")),
        out_bytes_(activation_bytes(kind_, k_)) {}

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    for (int64_t r = begin * kTileRows; r < last; r++) {
      store_row(x_ + r * x_stride_, k_, kind_, out_ + r * out_bytes_);
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;  // that few are done sooner than a barrier
  const float* x_;
  uint8_t* out_;
  int64_t k_, x_stride_;
  Rows rows_;
  Kind kind_;
  int64_t out_bytes_;
};

GALLEY_OP(quantize, Quantize);

}  // namespace
}  // namespace galley
