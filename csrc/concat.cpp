// Op `concat`: two values side by side: out[t] = x[t] | y[t].
// Pointers: x (f32 [tokens][nx]), y (f32 [tokens][ny]), out (f32 [tokens][nx + ny]). Ints: nx, ny.
// Tile: a token.
#include <cstring>

#include "program.h"

namespace galley {
namespace {

class Concat final : public Op {
 public:
  explicit Concat(const Args& a)
      : x_(a.ptr<float>("x")), y_(a.ptr<float>("y")), out_(a.ptr<float>("out")),
        nx_(a.size("nx")), ny_(a.size("ny")) {}

  int64_t tiles(const Step& step, int) const override { return step.tokens; }
  int64_t grain(const Step&) const override { return 4; }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t t = begin; t < end; t++) {
      float* out = out_ + t * (nx_ + ny_);
      std::memcpy(out, x_ + t * nx_, nx_ * sizeof(float));
      std::memcpy(out + nx_, y_ + t * ny_, ny_ * sizeof(float));
    }
  }

 private:
  const float* x_;
  const float* y_;
  float* out_;
  int64_t nx_, ny_;
};

GALLEY_OP(concat, Concat);

}  // namespace
}  // namespace galley
