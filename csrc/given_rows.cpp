// Op `given_rows`: rows that come with the step: out[t] = rows[t].
// Pointers: out (f32 [tokens][n]). Ints: n. Columns: rows (f32 [tokens][n]).
// Tile: a token.
#include <cstring>

#include "program.h"

namespace galley {
namespace {

class GivenRows final : public Op {
 public:
  explicit GivenRows(const Args& a)
      : out_(a.ptr<float>("out")), n_(a.size("n")), rows_(a.column<float>("rows")) {}

  int64_t tiles(const Step& step, int) const override { return step.tokens; }
  int64_t grain(const Step&) const override { return 4; }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t t = begin; t < end; t++) {
      std::memcpy(out_ + t * n_, rows_.row(t), n_ * sizeof(float));
    }
  }

 private:
  float* out_;
  int64_t n_;
  ColumnOf<float> rows_;
};

GALLEY_OP(given_rows, GivenRows);

}  // namespace
}  // namespace galley
