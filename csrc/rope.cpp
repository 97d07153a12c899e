// Op `rope_kv`: rotates queries and keys by their positions, writes q_out, and K and V to the
// cache. Pointers: qkv (f32 [tokens][(heads + 2 kv_heads) * head_dim]), table (f32
// [positions][rot_dim]: cos half, then sin half), q_weight?, k_weight? (f32 [head_dim]: RMS norm of
// each head first), q_out ([tokens][heads * head_dim] of q_kind), kv (the layer's base). Ints:
// heads, kv_heads, head_dim, rot_dim, style, q_kind, kv_kind (0 f32, 1 bf16), kv_block_stride
// (bytes). Floats: eps?. Layout of the cache: attention_layout.h.
// Tile: the tokens that one sequence adds to one page, so that no two threads share a line of K.
#include <algorithm>

#include "attention_layout.h"
#include "rope_kernel.h"
#include "scratch.h"

namespace galley {
namespace {

class RopeKv final : public Op {
 public:
  explicit RopeKv(const Args& a)
      : qkv_(a.ptr<float>("qkv")), table_(a.ptr<float>("table")), q_out_(a.ptr<uint8_t>("q_out")),
        kv_(a), kernel_(GALLEY_PICK(rope_kv_run)) {
    const Kind q_kind = a.kind("q_kind");
    if (q_kind != Kind::f32 && q_kind != Kind::bf16) {
      throw std::invalid_argument("q_kind must be 0 (f32) or 1 (bf16)");
    }
    shape_.heads = a.size("heads");
    shape_.kv_heads = kv_.heads;
    shape_.head_dim = kv_.head_dim;
    shape_.rot_dim = a.size("rot_dim");
    shape_.style = a.choice("style", 2, RopeStyle::halves);
    shape_.q_is_f32 = q_kind == Kind::f32;
    shape_.kv_is_f32 = kv_.is_f32;
    shape_.q_weight = a.ptr_or_null<float>("q_weight");
    shape_.k_weight = a.ptr_or_null<float>("k_weight");
    shape_.eps = static_cast<float>(a.f("eps", 0.0));
    if (shape_.rot_dim % 2 != 0 || shape_.rot_dim > shape_.head_dim) {
      throw std::invalid_argument("rot_dim must be even and at most head_dim");
    }
  }

  int64_t tiles(const Step& step, int) const override {
    runs_.clear();
    for (int32_t r = 0; r < step.rows; r++) {
      int64_t position = step.computed[r];
      for (int32_t t = step.query_start[r]; t < step.query_start[r + 1];) {
        const int32_t count = static_cast<int32_t>(std::min<int64_t>(
            kPage - position % kPage, step.query_start[r + 1] - t));
        runs_.push_back({r, t, count});
        t += count;
        position += count;
      }
    }
    return static_cast<int64_t>(runs_.size());
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    float* scratch = thread_scratch(2 * shape_.head_dim);
    for (int64_t i = begin; i < end; i++) {
      const RopeRun run = run_of(step, runs_[i]);
      const RopeRun next = run_of(step, runs_[i + 1 < end ? i + 1 : i]);
      kernel_(shape_, run, i + 1 < end ? &next : nullptr, scratch);
    }
  }

 private:
  struct PageRun {
    int32_t row, token, count;
  };

  RopeRun run_of(const Step& step, const PageRun& r) const {
    const int64_t width = (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim;
    const int64_t q_bytes = shape_.heads * shape_.head_dim * (shape_.q_is_f32 ? 4 : 2);
    const int64_t position = step.computed[r.row] + (r.token - step.query_start[r.row]);
    return {qkv_ + r.token * width,
            table_ + position * shape_.rot_dim,
            q_out_ + r.token * q_bytes,
            kv_.page(step, step.slots[r.row], position),
            static_cast<int>(position % kPage),
            r.count};
  }

  const float* qkv_;
  const float* table_;
  uint8_t* q_out_;
  KvLayout kv_;
  RopeShape shape_;
  decltype(&generic::rope_kv_run) kernel_;
  mutable std::vector<PageRun> runs_;
};

GALLEY_OP(rope_kv, RopeKv);

}  // namespace
}  // namespace galley
