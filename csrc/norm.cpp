// Op `rms_norm`: x[row] += add[row] (if given), out[row] = x / sqrt(mean(x^2) + eps) * weight, with
// the mean over the whole row, or over each of the row's `heads` vectors by itself. Pointers: x
// (f32), add? (f32 [rows][heads * n]), weight (f32 [n]), out ([rows][heads * n] of out_kind). Ints:
// n, heads? (default 1), x_stride? (elements from row to row, default heads * n), rows, out_kind.
// Floats: eps. Tile: 4 rows.
#include <algorithm>

#include "norm_kernel.h"
#include "scratch.h"

namespace galley {
namespace {

class RmsNorm final : public Op {
 public:
  explicit RmsNorm(const Args& a)
      : x_(a.ptr<float>("x")), add_(a.ptr_or_null<float>("add")), weight_(a.ptr<float>("weight")),
        out_(a.ptr<uint8_t>("out")), n_(a.size("n")), heads_(a.i("heads", 1)), width_(heads_ * n_),
        x_stride_(a.i("x_stride", width_)), rows_(a.rows()), kind_(a.kind("out_kind")),
        eps_(static_cast<float>(a.f("eps"))), out_bytes_(activation_bytes(kind_, width_)),
        kernel_(GALLEY_PICK(rms_norm_row_as)) {
    if (heads_ <= 0) throw std::invalid_argument("heads must be positive");
    if (x_stride_ < width_) throw std::invalid_argument("x_stride is less than heads * n");
  }

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    float* scratch = thread_scratch(width_);
    for (int64_t r = begin * kTileRows; r < last; r++) {
      kernel_(x_ + r * x_stride_, add_ ? add_ + r * width_ : nullptr, weight_, heads_, n_, eps_,
              scratch, kind_, out_ + r * out_bytes_);
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  float* x_;
  const float* add_;
  const float* weight_;
  uint8_t* out_;
  int64_t n_, heads_, width_, x_stride_;
  Dim rows_;
  Kind kind_;
  float eps_;
  int64_t out_bytes_;
  decltype(&generic::rms_norm_row_as) kernel_;
};

GALLEY_OP(rms_norm, RmsNorm);

}  // namespace
}  // namespace galley
