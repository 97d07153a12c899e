// Op `rope_kv`: a fusion of `rms_norm` per head, `rope` and `write_kv` with the same bits. Rotates
// queries and keys by the positions of their tokens, writes q_out, and K and V to the cache at
// their places in their sequences.
// Pointers: qkv (f32 [tokens][(heads + 2 kv_heads) * head_dim]), table (f32 [positions][rot_dim]:
// cos half, then sin half), q_weight?, k_weight? (f32 [head_dim]: RMS norm of each head first),
// q_out ([tokens][heads * head_dim] of q_kind), kv (the layer's base). Ints: heads, kv_heads,
// head_dim, rot_dim, style (0 halves, 1 interleaved), q_kind, the cache's format (attention_layout.h),
// kv_block_stride (bytes), block_size. Floats: eps?. Columns: positions, block_table. Layout of the
// cache: attention_layout.h. Tile: the tokens that one sequence adds to one page.
#include "page_runs.h"
#include "rope_arguments.h"
#include "scratch.h"

namespace galley {
namespace {

class RopeKv final : public Op {
 public:
  explicit RopeKv(const Args& a)
      : qkv_(a.ptr<float>("qkv")), q_out_(a.ptr<uint8_t>("q_out")), kv_(a),
        positions_(a.column<int32_t>("positions")), kernel_(GALLEY_PICK(rope_kv_run)),
        plan_(a.plan<PageRuns>(kv_.table())) {
    shape_.rotation = rotation_arguments(a);
    shape_.kv = {kv_.heads, kv_.head_dim, kv_.format};
    shape_.heads = a.size("heads");
    shape_.q_is_f32 = is_f32_argument(a, "q_kind");
    shape_.q_weight = a.ptr_or_null<float>("q_weight");
    shape_.k_weight = a.ptr_or_null<float>("k_weight");
    shape_.eps = static_cast<float>(a.f("eps", 0.0));
  }

  void plan(const Step& step, int threads) override { plan_->make_once(step, threads); }

  int64_t tiles(const Step&, int) const override {
    return static_cast<int64_t>(plan_->runs.size());
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    float* scratch = thread_scratch(2 * kv_.head_dim);
    for (int64_t i = begin; i < end; i++) {
      const RopeKvRun run = run_of(step, plan_->runs[i]);
      const RopeKvRun next = run_of(step, plan_->runs[i + 1 < end ? i + 1 : i]);
      kernel_(shape_, run, i + 1 < end ? &next : nullptr, scratch);
    }
  }

 private:
  RopeKvRun run_of(const Step& step, const PageRun& r) const {
    const int64_t width = (shape_.heads + 2 * kv_.heads) * kv_.head_dim;
    const int64_t q_bytes = shape_.heads * kv_.head_dim * (shape_.q_is_f32 ? 4 : 2);
    return {{kv_.page(step.slots[r.row], r.position),
             static_cast<int>(r.position % kPage), r.count},
            qkv_ + r.token * width,
            positions_.row(r.token),
            q_out_ + r.token * q_bytes};
  }

  const float* qkv_;
  uint8_t* q_out_;
  KvLayout kv_;
  ColumnOf<int32_t> positions_;
  RopeKvShape shape_;
  decltype(&generic::rope_kv_run) kernel_;
  PageRuns* plan_;
};

GALLEY_OP(rope_kv, RopeKv);

}  // namespace
}  // namespace galley
