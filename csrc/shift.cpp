// Op `shift`: x[t] += row, the same for every token.
// Pointers: x (f32 [tokens][n], updated), row (f32 [n]). Ints: n.
// Tile: a token.
#include "program.h"

namespace galley {
namespace {

class Shift final : public Op {
 public:
  explicit Shift(const Args& a)
      : x_(a.ptr<float>("x")), row_(a.ptr<float>("row")), n_(a.size("n")) {}

  int64_t tiles(const Step& step, int) const override { return step.tokens; }
  int64_t grain(const Step&) const override { return 4; }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t t = begin; t < end; t++) {
      for (int64_t i = 0; i < n_; i++) x_[t * n_ + i] += row_[i];
    }
  }

 private:
  float* x_;
  const float* row_;
  int64_t n_;
};

GALLEY_OP(shift, Shift);

}  // namespace
}  // namespace galley
