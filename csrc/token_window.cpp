// Op `token_window`: each number of a row beside those of the rows around it: out[t][c * taps + j] =
// x[t + j - taps / 2][c], 0 beyond the token's sequence, all of whose tokens are in the step.
// Pointers: x (f32 [tokens][n]), out (f32 [tokens][n * taps]). Ints: n, taps. Tile: a token.
#include "program.h"

namespace galley {
namespace {

class TokenWindow final : public Op {
 public:
  explicit TokenWindow(const Args& a)
      : x_(a.ptr<float>("x")), out_(a.ptr<float>("out")), n_(a.size("n")), taps_(a.size("taps")) {}

  int64_t tiles(const Step& step, int) const override { return step.tokens; }
  int64_t grain(const Step&) const override { return 4; }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    for (int64_t t = begin; t < end; t++) {
      const int32_t row = step.token_row[t];
      const int64_t first = step.query_start[row], last = step.query_start[row + 1];
      for (int64_t j = 0; j < taps_; j++) {
        const int64_t from = t + j - taps_ / 2;
        const bool inside = from >= first && from < last;
        float* out = out_ + t * n_ * taps_ + j;
        for (int64_t c = 0; c < n_; c++) out[c * taps_] = inside ? x_[from * n_ + c] : 0.0f;
      }
    }
  }

 private:
  const float* x_;
  float* out_;
  int64_t n_, taps_;
};

GALLEY_OP(token_window, TokenWindow);

}  // namespace
}  // namespace galley
