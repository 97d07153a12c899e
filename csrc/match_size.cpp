// Op `match_size`: each part of n columns of x gets the root mean square of the row of `like`:
// out = x * rms(like) / sqrt(max(mean(x * x), least)). Pointers: x, out (f32 [tokens][parts * n]),
// like (f32 [tokens] rows of n). Ints: n, parts, like_stride? (elements from row to row, default
// n). Floats: least. Tile: a token.
#include <algorithm>
#include <cmath>

#include "program.h"

namespace galley {
namespace {

float mean_square(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += static_cast<double>(x[i]) * x[i];
  return static_cast<float>(sum / static_cast<double>(n));
}

class MatchSize final : public Op {
 public:
  explicit MatchSize(const Args& a)
      : x_(a.ptr<float>("x")), like_(a.ptr<float>("like")), out_(a.ptr<float>("out")),
        n_(a.size("n")), parts_(a.size("parts")), stride_(a.i("like_stride", n_)),
        least_(static_cast<float>(a.f("least"))) {
    if (stride_ < n_) throw std::invalid_argument("like_stride is less than n");
  }

  int64_t tiles(const Step& step, int) const override { return step.tokens; }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t t = begin; t < end; t++) {
      const float wanted = std::sqrt(mean_square(like_ + t * stride_, n_));
      for (int64_t p = t * parts_; p < (t + 1) * parts_; p++) {
        const float* x = x_ + p * n_;
        const float factor = wanted / std::sqrt(std::max(mean_square(x, n_), least_));
        for (int64_t i = 0; i < n_; i++) out_[p * n_ + i] = x[i] * factor;
      }
    }
  }

 private:
  const float* x_;
  const float* like_;
  float* out_;
  int64_t n_, parts_, stride_;
  float least_;
};

GALLEY_OP(match_size, MatchSize);

}  // namespace
}  // namespace galley
