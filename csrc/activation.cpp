// Ops on single rows. Tile: 4 rows.
//
// `silu_and_mul`: out = silu(gate) * up. Pointers: x (f32 [rows][2n]), out. Ints: n, rows, out_kind,
//   interleaved? (0 = gate then up, 1 = interleaved in runs of 16 columns).
// `add`: x += y. Pointers: x, y (f32 [rows][n]). Ints: n, rows.
#include "activation_kernel.h"

#include <algorithm>

#include "gated_activation.h"

namespace galley {
namespace {

constexpr int64_t kTileRows = 4;

int64_t row_tiles(const Step& step, Dim rows) {
  return (row_count(step, rows) + kTileRows - 1) / kTileRows;
}

class SiluMul final : public GatedActivation {
 public:
  explicit SiluMul(const Args& a) : GatedActivation(a, GALLEY_PICK(silu_mul_row)) {}
};

class Add final : public Op {
 public:
  explicit Add(const Args& a)
      : x_(a.ptr<float>("x")), y_(a.ptr<float>("y")), n_(a.size("n")), rows_(a.rows()),
        kernel_(GALLEY_PICK(add_row)) {}

  int64_t tiles(const Step& step, int) const override { return row_tiles(step, rows_); }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    const int64_t first = begin * kTileRows;
    kernel_(x_ + first * n_, y_ + first * n_, (last - first) * n_);
  }

 private:
  float* x_;
  const float* y_;
  int64_t n_;
  Dim rows_;
  decltype(&generic::add_row) kernel_;
};

GALLEY_OP(silu_and_mul, SiluMul);
GALLEY_OP(add, Add);

}  // namespace
}  // namespace galley
