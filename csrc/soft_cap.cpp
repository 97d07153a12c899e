// Op `soft_cap`: out = cap * tanh(out / cap), in place. Pointers: out (f32 [rows] rows of n). Ints: n,
// out_stride? (elements from row to row, default n), rows. Floats: cap. Tile: one row.
#include "soft_cap_kernel.h"

namespace galley {
namespace {

class SoftCap final : public Op {
 public:
  explicit SoftCap(const Args& a)
      : x_(a.ptr<float>("out")), n_(a.size("n")), stride_(a.i("out_stride", n_)), rows_(a.rows()),
        cap_(static_cast<float>(a.f("cap"))), kernel_(GALLEY_PICK(soft_cap_row)) {
    if (!(cap_ > 0.0f)) throw std::invalid_argument("cap must be positive");
    if (stride_ < n_) throw std::invalid_argument("out_stride is less than n");
  }

  int64_t tiles(const Step& step, int) const override { return row_count(step, rows_); }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t r = begin; r < end; r++) kernel_(x_ + r * stride_, n_, cap_, 1.0f / cap_);
  }

 private:
  float* x_;
  int64_t n_, stride_;
  Dim rows_;
  float cap_;
  decltype(&generic::soft_cap_row) kernel_;
};

GALLEY_OP(soft_cap, SoftCap);

}  // namespace
}  // namespace galley
