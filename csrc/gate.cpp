// Op `gate`: out = x * function(gate * scale). Pointers: x, gate (f32 [tokens][n]), out ([tokens][n]
// of out_kind). Ints: n, function? (0 silu, 1 sigmoid, 2 identity, 3 gelu_tanh, 4 gelu), x_stride?,
// gate_stride?, out_kind. Floats: scale?. Tile: 4 tokens.
#include "gate_kernel.h"

#include "scratch.h"
#include "state.h"

namespace galley {
namespace {

class Gate final : public Op {
 public:
  explicit Gate(const Args& a)
      : n_(a.size("n")), function_(a.choice("function", 5, GateFunction::silu)),
        scale_(a.f("scale", 1.0)), x_(rows_argument(a, "x", n_)),
        gate_(rows_argument(a, "gate", n_)), out_(a.ptr<uint8_t>("out")),
        kind_(a.kind("out_kind")), out_bytes_(activation_bytes(kind_, n_)),
        kernel_(GALLEY_PICK(gate_row)) {}

  int64_t tiles(const Step& step, int) const override {
    return (step.tokens + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, step.tokens);
    float* scratch = thread_scratch(n_);
    for (int64_t t = begin * kTileRows; t < last; t++) {
      kernel_(x_.row(t), gate_.row(t), n_, function_, scale_, scratch, kind_,
              out_ + t * out_bytes_);
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  int64_t n_;
  GateFunction function_;
  float scale_;
  Rows x_, gate_;
  uint8_t* out_;
  Kind kind_;
  int64_t out_bytes_;
  decltype(&generic::gate_row) kernel_;
};

GALLEY_OP(gate, Gate);

}  // namespace
}  // namespace galley
