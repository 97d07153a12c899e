// Op `mix`: out[o] = sum over s of coefs[o][s] * x[s], of parts of n columns. Pointers: x (f32
// [tokens][ins * n]), coefs (f32 [tokens][outs][ins], or [outs][ins] for all tokens), out (f32
// [tokens][outs * n]). Ints: n, ins, outs, constant? (1 = coefs are those of all tokens). Tile: a
// token.
#include "program.h"

namespace galley {
namespace {

class Mix final : public Op {
 public:
  explicit Mix(const Args& a)
      : x_(a.ptr<float>("x")), coefs_(a.ptr<float>("coefs")), out_(a.ptr<float>("out")),
        n_(a.size("n")), ins_(a.size("ins")), outs_(a.size("outs")),
        constant_(a.choice("constant", 2, 0) == 1) {}

  int64_t tiles(const Step& step, int) const override { return step.tokens; }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t t = begin; t < end; t++) {
      const float* coefs = coefs_ + (constant_ ? 0 : t * outs_ * ins_);
      for (int64_t o = 0; o < outs_; o++) {
        float* out = out_ + (t * outs_ + o) * n_;
        const float* x = x_ + t * ins_ * n_;
        const float first = coefs[o * ins_];
        for (int64_t i = 0; i < n_; i++) out[i] = first * x[i];
        for (int64_t s = 1; s < ins_; s++) {
          const float factor = coefs[o * ins_ + s];
          for (int64_t i = 0; i < n_; i++) out[i] += factor * x[s * n_ + i];
        }
      }
    }
  }

 private:
  const float* x_;
  const float* coefs_;
  float* out_;
  int64_t n_, ins_, outs_;
  bool constant_;
};

GALLEY_OP(mix, Mix);

}  // namespace
}  // namespace galley
