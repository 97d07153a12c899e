// Op `head_linear`: each head's columns of a row times the head's own weight. Pointers: x ([rows]
// [heads * k] of x_kind), weights (experts.h: dense, one of each head), out (f32 [rows][heads * n]).
// Ints: n, k, heads, rows, x_kind (f32, bf16), x_stride? (elements, default heads * k). Tile: the outputs of one head, for up to 240 rows.
#include "experts.h"
#include "linear_variants.h"
#include "scratch.h"

namespace galley {
namespace {

class HeadLinear final : public Op {
 public:
  explicit HeadLinear(const Args& a)
      : heads_(a.size("heads")), rows_(a.rows()),
        jobs_(expert_jobs(a, "weights", heads_, a.size("n"), a.size("k"), a.kind("x_kind"))) {
    const auto* x = a.ptr<uint8_t>("x");
    auto* out = a.ptr<uint8_t>("out");
    const int64_t k = jobs_[0].weight.k, stride = a.i("x_stride", heads_ * k);
    if (stride < heads_ * k) throw std::invalid_argument("x_stride is less than heads * k");
    for (int64_t h = 0; h < heads_; h++) {
      LinearJob& job = jobs_[h];
      if (job.weight.quantised()) throw std::invalid_argument("head_linear: weights must be dense");
      job.x = x + h * job.x_bytes;
      job.x_bytes = activation_bytes(job.x_kind, stride);
      job.out = out + h * job.weight.n * 4;
      job.out_bytes = heads_ * job.weight.n * 4;
    }
  }

  int64_t tiles(const Step& step, int) const override {
    return heads_ * pieces(row_count(step, rows_));
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t rows = row_count(step, rows_), count = pieces(rows);
    const LinearJob& first = jobs_[0];
    auto* scratch = reinterpret_cast<uint8_t*>(
        thread_scratch(linear_scratch_bytes(first.weight, first.x_kind) / 4));
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t piece = tile / heads_;
      const LinearJob& job = jobs_[tile % heads_];
      kernel_(job, 0, job.weight.panels(), rows * piece / count, rows * (piece + 1) / count, scratch);
    }
  }

 private:
  static int64_t pieces(int64_t rows) { return (rows + kChunkRows - 1) / kChunkRows; }

  int64_t heads_;
  Dim rows_;
  std::vector<LinearJob> jobs_;
  decltype(&generic::linear_tile) kernel_ = GALLEY_PICK_TILES(linear_tile);
};

GALLEY_OP(head_linear, HeadLinear);

}  // namespace
}  // namespace galley
