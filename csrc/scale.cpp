// Op `scale`: out = x * factor. Pointers: x (f32 [rows][n]), factor (f32 [n], or [1] for all
// columns), out ([rows][n] of out_kind). Ints: n, one? (1 = one factor for all columns), rows,
// out_kind. Tile: 4 rows.
#include "scale_kernel.h"

#include <algorithm>

#include "scratch.h"

namespace galley {
namespace {

class Scale final : public Op {
 public:
  explicit Scale(const Args& a)
      : x_(a.ptr<float>("x")), factor_(a.ptr<float>("factor")), out_(a.ptr<uint8_t>("out")),
        n_(a.size("n")), one_(a.choice("one", 2, 0) == 1), rows_(a.rows()),
        kind_(a.kind("out_kind")), out_bytes_(activation_bytes(kind_, n_)),
        kernel_(GALLEY_PICK(scale_row)) {}

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    float* scratch = thread_scratch(n_);
    for (int64_t r = begin * kTileRows; r < last; r++) {
      kernel_(x_ + r * n_, factor_, one_, n_, scratch, kind_, out_ + r * out_bytes_);
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  const float* x_;
  const float* factor_;
  uint8_t* out_;
  int64_t n_;
  bool one_;
  Dim rows_;
  Kind kind_;
  int64_t out_bytes_;
  decltype(&generic::scale_row) kernel_;
};

GALLEY_OP(scale, Scale);

}  // namespace
}  // namespace galley
