// Op `disentangled_attention`: attention of DeBERTa over the tokens of a sequence in this step, which
// are all that it has. Pointers: q, k, v (f32 [tokens][*_stride], of which heads * head_dim), keys?,
// queries? (f32 [distances][heads * head_dim]), rows (int32 [2 reach + 1]: the row of keys and queries of
// each distance, from -reach to reach), out (f32 [tokens][heads * head_dim]). Ints: heads, head_dim,
// reach, q_stride, k_stride, v_stride. Floats: scale. Tile: 16 queries of one head.
#include "disentangled_attention_kernel.h"

#include <algorithm>
#include <stdexcept>

#include "scratch.h"

namespace galley {
namespace {

class DisentangledAttention final : public Op {
 public:
  explicit DisentangledAttention(const Args& a)
      : heads_(a.size("heads")), head_dim_(a.size("head_dim")), reach_(a.size("reach")),
        scale_(static_cast<float>(a.f("scale"))), q_{a.ptr<float>("q"), a.size("q_stride")},
        k_{a.ptr<float>("k"), a.size("k_stride")}, v_{a.ptr<float>("v"), a.size("v_stride")},
        keys_{a.ptr_or_null<float>("keys"), heads_ * head_dim_},
        queries_{a.ptr_or_null<float>("queries"), heads_ * head_dim_},
        distance_rows_(a.ptr<int32_t>("rows")), out_(a.ptr<float>("out")) {
    if (std::min({q_.stride, k_.stride, v_.stride}) < heads_ * head_dim_) {
      throw std::invalid_argument("a stride is less than heads * head_dim");
    }
  }

  void plan(const Step& step, int) override {
    blocks_.clear();
    for (int32_t r = 0; r < step.rows; r++) {
      if (step.computed[r]) throw std::invalid_argument("a sequence is computed in one step");
      const int32_t begin = step.query_start[r], end = step.query_start[r + 1];
      for (int32_t i = begin; i < end; i += kQueries) blocks_.push_back({begin, end, i});
    }
  }
  int64_t tiles(const Step&, int) const override {
    return static_cast<int64_t>(blocks_.size()) * heads_;
  }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t tile = begin; tile < end; tile++) {
      const Block& block = blocks_[tile / heads_];
      const int64_t column = tile % heads_ * head_dim_, length = block.end - block.begin;
      auto rows_of = [&](const HeadRows& all) {
        return HeadRows{all.row(block.begin) + column, all.stride};
      };
      auto by_distance = [&](const HeadRows& all) {
        return HeadRows{all.data ? all.data + column : nullptr, all.stride};
      };
      const DisentangledJob job{rows_of(q_), rows_of(k_), rows_of(v_), by_distance(keys_),
                                by_distance(queries_), distance_rows_, reach_, length, head_dim_,
                                scale_};
      float* scores = thread_scratch((length + 15) / 16 * 16);
      const int32_t last = std::min(block.end, block.first + kQueries);
      for (int32_t t = block.first; t < last; t++) {
        kernel_(job, t - block.begin, scores, out_ + t * heads_ * head_dim_ + column);
      }
    }
  }

 private:
  static constexpr int32_t kQueries = 16;
  struct Block {
    int32_t begin, end, first;  // tokens of the sequence, first query
  };

  int64_t heads_, head_dim_, reach_;
  float scale_;
  HeadRows q_, k_, v_, keys_, queries_;
  const int32_t* distance_rows_;
  float* out_;
  std::vector<Block> blocks_;
  decltype(&generic::disentangled_row) kernel_ = GALLEY_PICK(disentangled_row);
};

GALLEY_OP(disentangled_attention, DisentangledAttention);

}  // namespace
}  // namespace galley
