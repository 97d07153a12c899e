// Op `permute`: out[r][i] = x[r][order[i]]. Pointers: x (f32 [rows][n]), order (i32 [n]), out (f32
// [rows][n]). Ints: n, rows, x_stride?
// (elements, default n). Tile: 4 rows.
#include <algorithm>

#include "program.h"

namespace galley {
namespace {

class Permute final : public Op {
 public:
  explicit Permute(const Args& a)
      : x_(a.ptr<float>("x")), order_(a.ptr<int32_t>("order")), out_(a.ptr<float>("out")),
        n_(a.size("n")), stride_(a.i("x_stride", n_)), rows_(a.rows()) {
    if (stride_ < n_) throw std::invalid_argument("x_stride is less than n");
    for (int64_t i = 0; i < n_; i++) {
      if (order_[i] < 0 || order_[i] >= n_) throw std::invalid_argument("permute: no such column");
    }
  }

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    for (int64_t r = begin * kTileRows; r < last; r++) {
      const float* x = x_ + r * stride_;
      float* out = out_ + r * n_;
      for (int64_t i = 0; i < n_; i++) out[i] = x[order_[i]];
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  const float* x_;
  const int32_t* order_;
  float* out_;
  int64_t n_, stride_;
  Dim rows_;
};

GALLEY_OP(permute, Permute);

}  // namespace
}  // namespace galley
