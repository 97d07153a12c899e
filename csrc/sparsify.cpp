// Op `sparsify`: out = max(x - cut, 0), where the cut of a row is its mean and `deviations` standard
// deviations. Pointers: x (f32 [tokens] rows of n), out (f32 [tokens][n]). Ints: n, x_stride?
// (elements from row to row, default n). Floats: deviations. Tile: a token.
#include <algorithm>
#include <cmath>

#include "program.h"

namespace galley {
namespace {

class Sparsify final : public Op {
 public:
  explicit Sparsify(const Args& a)
      : x_(a.ptr<float>("x")), out_(a.ptr<float>("out")), n_(a.size("n")),
        stride_(a.i("x_stride", n_)), deviations_(static_cast<float>(a.f("deviations"))) {
    if (stride_ < n_) throw std::invalid_argument("x_stride is less than n");
  }

  int64_t tiles(const Step& step, int) const override { return step.tokens; }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    const double count = static_cast<double>(n_);
    for (int64_t t = begin; t < end; t++) {
      const float* x = x_ + t * stride_;
      double sum = 0, squares = 0;
      for (int64_t i = 0; i < n_; i++) sum += x[i];
      const double mean = sum / count;
      for (int64_t i = 0; i < n_; i++) squares += (x[i] - mean) * (x[i] - mean);
      const float cut = static_cast<float>(mean + std::sqrt(squares / count) * deviations_);
      for (int64_t i = 0; i < n_; i++) out_[t * n_ + i] = std::max(x[i] - cut, 0.0f);
    }
  }

 private:
  const float* x_;
  float* out_;
  int64_t n_, stride_;
  float deviations_;
};

GALLEY_OP(sparsify, Sparsify);

}  // namespace
}  // namespace galley
