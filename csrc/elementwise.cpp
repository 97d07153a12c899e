// Op `elementwise`: out = f(x). Pointers: x (f32 [rows][n]), out, parameters? (f32 [4], of xielu:
// positive and negative coefficients before softplus, beta, limit). Ints: n, rows, out_kind,
// function (enum Function). Floats: limit? (of clip, above 0). Tile: 4 rows.
#include "elementwise_kernel.h"

#include <algorithm>
#include <cmath>

#include "scratch.h"

namespace galley {
namespace {

float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::fabs(x))); }

class ElementwiseOp final : public Op {
 public:
  explicit ElementwiseOp(const Args& a)
      : x_(a.ptr<float>("x")), out_(a.ptr<uint8_t>("out")), n_(a.size("n")), rows_(a.rows()),
        kind_(a.kind("out_kind")), out_bytes_(activation_bytes(kind_, n_)),
        kernel_(GALLEY_PICK(elementwise_row)) {
    f_.function = a.choice("function", static_cast<int>(Function::count), Function::gelu);
    f_.limit = static_cast<float>(a.f("limit", 0));
    if (f_.function == Function::clip && !(f_.limit > 0)) {
      throw std::invalid_argument("clip needs a limit above 0");
    }
    const float* p = a.ptr_or_null<float>("parameters");
    if (f_.function != Function::xielu) return;
    if (!p) throw std::invalid_argument("xielu needs parameters");
    f_.positive = softplus(p[0]);
    f_.negative = p[2] + softplus(p[1]);
    f_.beta = p[2];
    f_.limit = p[3];
  }

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    float* scratch = thread_scratch(n_);
    for (int64_t r = begin * kTileRows; r < last; r++) {
      kernel_(f_, x_ + r * n_, n_, scratch, kind_, out_ + r * out_bytes_);
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  const float* x_;
  uint8_t* out_;
  int64_t n_;
  Dim rows_;
  Kind kind_;
  int64_t out_bytes_;
  Elementwise f_{};
  decltype(&generic::elementwise_row) kernel_;
};

GALLEY_OP(elementwise, ElementwiseOp);

}  // namespace
}  // namespace galley
