// Op `select_rows`: out[l] = x[logit_index[l]], the rows that yield logits.
// Pointers: x (f32 [tokens][n]), out (f32 [logits][n]). Ints: n. Columns: logit_index.
// Tile: one logit row.
#include <cstring>

#include "program.h"

namespace galley {
namespace {

class SelectRows final : public Op {
 public:
  explicit SelectRows(const Args& a)
      : x_(a.ptr<float>("x")), out_(a.ptr<float>("out")), n_(a.size("n")),
        logit_index_(a.column<int32_t>("logit_index")) {}

  int64_t tiles(const Step& step, int) const override { return step.logits; }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t l = begin; l < end; l++) {
      std::memcpy(out_ + l * n_, x_ + logit_index_[l] * n_, n_ * sizeof(float));
    }
  }

 private:
  const float* x_;
  float* out_;
  int64_t n_;
  ColumnOf<int32_t> logit_index_;
};

GALLEY_OP(select_rows, SelectRows);

}  // namespace
}  // namespace galley
