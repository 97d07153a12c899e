// Op `embedding`: row first + token_ids[t] of a packed weight [n, k], as float32.
// Pointers: weight, out (f32 [tokens][k]). Ints: n, k, first? (default 0) and the weight's format
// (linear.h). Columns: token_ids. Tile: a token. An id outside the weight gives a row of zeros.
#include <cstring>

#include "pack.h"

namespace galley {
namespace {

class Embedding final : public Op {
 public:
  explicit Embedding(const Args& a)
      : weight_(weight_layout(a)), data_(a.ptr<uint8_t>("weight")), out_(a.ptr<float>("out")),
        first_(a.i("first", 0)), token_ids_(a.column<int32_t>("token_ids")) {}

  int64_t tiles(const Step& step, int) const override { return step.tokens; }
  int64_t grain(const Step&) const override { return 4; }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t t = begin; t < end; t++) {
      const int64_t id = first_ + token_ids_[t];
      float* out = out_ + t * weight_.k;
      if (id >= 0 && id < weight_.n) {
        unpack_row(weight_, data_, id, out);
      } else {
        std::memset(out, 0, 4 * weight_.k);
      }
    }
  }

 private:
  WeightLayout weight_;
  const uint8_t* data_;
  float* out_;
  int64_t first_;
  ColumnOf<int32_t> token_ids_;
};

GALLEY_OP(embedding, Embedding);

}  // namespace
}  // namespace galley
