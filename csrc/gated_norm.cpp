// Op `gated_norm`: RMS norm of each of a row's `groups` vectors of n elements, with a gate: of x *
// silu(gate * gate_scale) with `gate_first`, else multiplied with silu(gate * gate_scale) after.
// Pointers: x, gate (f32 [tokens][groups * n]), weight (f32 [groups * n]), out
// ([tokens][groups * n] of out_kind). Ints: n, groups?, gate_first?, x_stride?, gate_stride?,
// out_kind. Floats: eps, gate_scale?. Tile: 4 tokens.
#include "gated_norm_kernel.h"

#include "scratch.h"
#include "state.h"

namespace galley {
namespace {

class GatedNorm final : public Op {
 public:
  explicit GatedNorm(const Args& a)
      : n_(a.size("n")), groups_(a.i("groups", 1)), x_(rows_argument(a, "x", groups_ * n_)),
        gate_(rows_argument(a, "gate", groups_ * n_)), weight_(a.ptr<float>("weight")),
        out_(a.ptr<uint8_t>("out")), eps_(a.f("eps")), gate_scale_(a.f("gate_scale", 1.0)),
        gate_first_(a.choice("gate_first", 2, 0) != 0), kind_(a.kind("out_kind")),
        out_bytes_(activation_bytes(kind_, groups_ * n_)), kernel_(GALLEY_PICK(gated_norm_row)) {
    if (groups_ <= 0) throw std::invalid_argument("groups must be positive");
  }

  int64_t tiles(const Step& step, int) const override {
    return (step.tokens + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, step.tokens);
    float* scratch = thread_scratch(groups_ * n_);
    for (int64_t t = begin * kTileRows; t < last; t++) {
      kernel_(x_.row(t), gate_.row(t), weight_, groups_, n_, eps_, gate_first_, gate_scale_,
              scratch, kind_, out_ + t * out_bytes_);
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  int64_t n_, groups_;
  Rows x_, gate_;
  const float* weight_;
  uint8_t* out_;
  float eps_, gate_scale_;
  bool gate_first_;
  Kind kind_;
  int64_t out_bytes_;
  decltype(&generic::gated_norm_row) kernel_;
};

GALLEY_OP(gated_norm, GatedNorm);

}  // namespace
}  // namespace galley
