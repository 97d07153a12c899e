// Op `rms_norm`: x[row] += add[row] (if given), out[row] = x / sqrt(mean(x^2) + eps) * weight.
// Pointers: x (f32), add? (f32), weight (f32 [n]), out. Ints: n, rows, out_kind. Floats: eps.
// Tile: 4 rows.
#include <algorithm>

#include "norm_kernel.h"
#include "scratch.h"

namespace galley {
namespace {

class RmsNorm final : public Op {
 public:
  explicit RmsNorm(const Args& a)
      : x_(a.ptr<float>("x")), add_(a.ptr_or_null<float>("add")), weight_(a.ptr<float>("weight")),
        out_(a.ptr<uint8_t>("out")), n_(a.size("n")), rows_(a.rows()), kind_(a.kind("out_kind")),
        eps_(static_cast<float>(a.f("eps"))), out_bytes_(activation_bytes(kind_, n_)),
        kernel_(GALLEY_PICK(rms_norm_row_as)) {}

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    float* scratch = thread_scratch(n_);
    for (int64_t r = begin * kTileRows; r < last; r++) {
      kernel_(x_ + r * n_, add_ ? add_ + r * n_ : nullptr, weight_, n_, eps_, scratch, kind_,
              out_ + r * out_bytes_);
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  float* x_;
  const float* add_;
  const float* weight_;
  uint8_t* out_;
  int64_t n_;
  Rows rows_;
  Kind kind_;
  float eps_;
  int64_t out_bytes_;
  decltype(&generic::rms_norm_row_as) kernel_;
};

GALLEY_OP(rms_norm, RmsNorm);

}  // namespace
}  // namespace galley
