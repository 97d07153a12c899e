// Op `rope`: rotates each head of x by the position of its token, as f32 or bf16.
// Pointers: x (f32 [tokens] rows of heads * head_dim), table (f32 [positions][rot_dim]: cos half,
// then sin half), out ([tokens][heads * head_dim] of out_kind). Ints: heads, head_dim, rot_dim
// (even, at most head_dim; further elements are copied), style (0 halves, 1 interleaved), x_stride?
// (elements from row to row, default heads * head_dim), out_kind (0 f32, 1 bf16). Columns:
// positions (absolute; by default the token's index in its sequence). Tile: 4 tokens.
#include <algorithm>

#include "rope_arguments.h"
#include "rope_kernel.h"
#include "scratch.h"

namespace galley {
namespace {

class Rope final : public Op {
 public:
  explicit Rope(const Args& a)
      : rotation_(rotation_arguments(a)), x_(a.ptr<float>("x")), out_(a.ptr<uint8_t>("out")),
        heads_(a.size("heads")), width_(heads_ * rotation_.head_dim),
        x_stride_(a.i("x_stride", width_)), out_is_f32_(is_f32_argument(a, "out_kind")),
        positions_(a.column<int32_t>("positions")),
        kernel_(GALLEY_PICK(rope_row)) {
    if (x_stride_ < width_) throw std::invalid_argument("x_stride is less than heads * head_dim");
  }

  int64_t tiles(const Step& step, int) const override {
    return (step.tokens + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, step.tokens);
    const int64_t out_bytes = width_ * (out_is_f32_ ? 4 : 2);
    float* scratch = thread_scratch(rotation_.head_dim);
    for (int64_t t = begin * kTileRows; t < last; t++) {
      kernel_(rotation_, x_ + t * x_stride_, heads_, positions_[t], out_is_f32_,
              out_ + t * out_bytes, scratch);
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  Rotation rotation_;
  const float* x_;
  uint8_t* out_;
  int64_t heads_, width_, x_stride_;
  bool out_is_f32_;
  ColumnOf<int32_t> positions_;
  decltype(&generic::rope_row) kernel_;
};

GALLEY_OP(rope, Rope);

}  // namespace

bool is_f32_argument(const Args& a, const char* name) {
  const Kind kind = a.kind(name);
  if (kind != Kind::f32 && kind != Kind::bf16) {
    throw std::invalid_argument(std::string(name) + " must be 0 (f32) or 1 (bf16)");
  }
  return kind == Kind::f32;
}

Rotation rotation_arguments(const Args& a) {
  Rotation r;
  r.head_dim = a.size("head_dim");
  r.rot_dim = a.size("rot_dim");
  r.style = a.choice("style", 2, RopeStyle::halves);
  r.table = a.ptr<float>("table");
  if (r.rot_dim % 2 != 0 || r.rot_dim > r.head_dim) {
    throw std::invalid_argument("rot_dim must be even and at most head_dim");
  }
  return r;
}

}  // namespace galley
