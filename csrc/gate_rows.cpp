// Op `gate_rows`: x[row] *= sigmoid(gate[row]). Pointers: x (f32 [rows][n]), gate (f32 [rows]). Ints:
// n, rows. Tile: 4 rows.
#include <algorithm>
#include <cmath>

#include "program.h"

namespace galley {
namespace {

class GateRows final : public Op {
 public:
  explicit GateRows(const Args& a)
      : x_(a.ptr<float>("x")), gate_(a.ptr<float>("gate")), n_(a.size("n")), rows_(a.rows()) {}

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    for (int64_t r = begin * kTileRows; r < last; r++) {
      const float factor = 1.0f / (1.0f + std::exp(-gate_[r]));
      for (int64_t i = 0; i < n_; i++) x_[r * n_ + i] *= factor;
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  float* x_;
  const float* gate_;
  int64_t n_;
  Dim rows_;
};

GALLEY_OP(gate_rows, GateRows);

}  // namespace
}  // namespace galley
