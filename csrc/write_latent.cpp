// Op `write_latent`: writes the keys of the step's tokens to a latent cache, at their places in their
// sequences. Pointers: latent (f32 [tokens] rows of latent_dim), rope (f32 [tokens] rows of head_dim -
// latent_dim), kv (the layer's base). Ints: head_dim, latent_dim, latent_stride?, rope_stride?
// (elements from row to row), kv_heads (1), the cache's format (attention_layout.h), kv_block_stride (bytes),
// block_size. Columns: block_table. Layout of the cache: attention_layout.h. Tile: the tokens that
// one sequence adds to one page.
#include "write_latent_kernel.h"

#include "page_runs.h"

namespace galley {
namespace {

class WriteLatent final : public Op {
 public:
  explicit WriteLatent(const Args& a)
      : kv_(a, true), latent_(a.ptr<float>("latent")), rope_(a.ptr<float>("rope")),
        n_(a.size("latent_dim")), m_(kv_.head_dim - n_), latent_stride_(a.i("latent_stride", n_)),
        rope_stride_(a.i("rope_stride", m_)), plan_(a.plan<PageRuns>(kv_.table())) {
    if (n_ % 2 != 0 || m_ <= 0) {
      throw std::invalid_argument("latent_dim must be even and less than head_dim");
    }
    if (latent_stride_ < n_ || rope_stride_ < m_) {
      throw std::invalid_argument("a stride is less than the elements of a row");
    }
  }

  void plan(const Step& step, int threads) override { plan_->make_once(step, threads); }

  int64_t tiles(const Step&, int) const override {
    return static_cast<int64_t>(plan_->runs.size());
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    for (int64_t i = begin; i < end; i++) {
      const PageRun& r = plan_->runs[i];
      uint8_t* page = kv_.page(step.slots[r.row], r.position);
      for (int t = 0; t < r.count; t++) {
        kernel_(latent_ + (r.token + t) * latent_stride_, n_, rope_ + (r.token + t) * rope_stride_,
                m_, kv_.format, page, static_cast<int>(r.position % kPage) + t);
      }
    }
  }

 private:
  KvLayout kv_;
  const float* latent_;
  const float* rope_;
  int64_t n_, m_, latent_stride_, rope_stride_;
  PageRuns* plan_;
  decltype(&generic::write_latent_key) kernel_ = GALLEY_PICK(write_latent_key);
};

GALLEY_OP(write_latent, WriteLatent);

}  // namespace
}  // namespace galley
