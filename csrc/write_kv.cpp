// Op `write_kv`: writes K and V of the step's tokens to the cache, at their places in their
// sequences. Pointers: k ([tokens] rows of kv_heads * head_dim of k_kind), v (likewise, v_kind), kv
// (the layer's base). Ints: kv_heads, head_dim, k_kind, v_kind (0 f32, 1 bf16), k_stride?,
// v_stride? (elements from row to row, default kv_heads * head_dim), the cache's format (attention_layout.h),
// kv_block_stride (bytes), block_size. Columns: block_table. Layout of the cache:
// attention_layout.h. Tile: the tokens that one sequence adds to one page.
#include "page_runs.h"
#include "rope_arguments.h"
#include "scratch.h"

namespace galley {
namespace {

class WriteKv final : public Op {
 public:
  explicit WriteKv(const Args& a)
      : kv_(a), shape_{kv_.heads, kv_.head_dim, kv_.format}, k_(rows(a, "k")), v_(rows(a, "v")),
        kernel_(GALLEY_PICK(write_kv_run)), plan_(a.plan<PageRuns>(kv_.table())) {}

  void plan(const Step& step, int threads) override { plan_->make_once(step, threads); }

  int64_t tiles(const Step&, int) const override {
    return static_cast<int64_t>(plan_->runs.size());
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    float* scratch = thread_scratch(shape_.head_dim);
    for (int64_t i = begin; i < end; i++) {
      const PageRun& r = plan_->runs[i];
      const KvRun run{kv_.page(step.slots[r.row], r.position),
                      static_cast<int>(r.position % kPage), r.count};
      KvRows k = k_, v = v_;
      k.data += r.token * k.bytes;
      v.data += r.token * v.bytes;
      kernel_(shape_, run, k, v, scratch);
    }
  }

 private:
  KvRows rows(const Args& a, const std::string& name) const {
    const int64_t width = kv_.heads * kv_.head_dim, stride = a.i(name + "_stride", width);
    if (stride < width) {
      throw std::invalid_argument(name + "_stride is less than kv_heads * head_dim");
    }
    const bool is_f32 = is_f32_argument(a, (name + "_kind").c_str());
    return {a.ptr<uint8_t>(name), stride * (is_f32 ? 4 : 2), is_f32};
  }

  KvLayout kv_;
  KvShape shape_;
  KvRows k_, v_;
  decltype(&generic::write_kv_run) kernel_;
  PageRuns* plan_;
};

GALLEY_OP(write_kv, WriteKv);

}  // namespace
}  // namespace galley
