// Ops `adapt_embedding` and `adapt_head`: adapters of the embedding and of the head (adapters.h),
// which may have a whole matrix of their own.
//
// adapt_embedding: for tokens with an adapter, low = scale * (the token's column of A), and out = the
//   token's row of the adapter's own embedding if it has one. Pointers: adapters, low (of f32), out (f32 [tokens][n]). Ints: first_input, max_rank, k (vocabulary), n, copy
//   (column of the table). A is [k][rank], the embedding [k][n]. Columns: adapter, token_ids. Tile: up
//   to 32 tokens of one adapter.
// adapt_head: out = W x, for rows whose adapter has a head of its own. Pointers: x (f32 [rows][k]),
//   adapters, out (f32 [rows][out_stride]). Ints: k, n, out_stride, copy; rows (tokens, logits). W is in
//   panels as B is. Column: adapter. Tile: 8 panels of 16 outputs, for up to 32 rows of one adapter.
// Both: ints width, all_inputs, all_outputs, bf16.
#include <algorithm>
#include <cstring>

#include "adapters.h"

namespace galley {
namespace {

// n numbers from the i-th on, as float.
void widen(const uint8_t* from, bool bf16, int64_t i, int64_t n, float scale, float* out) {
  if (!bf16) {
    const float* values = reinterpret_cast<const float*>(from) + i;
    for (int64_t j = 0; j < n; j++) out[j] = values[j] * scale;
    return;
  }
  const auto* values = reinterpret_cast<const uint16_t*>(from) + i;
  for (int64_t j = 0; j < n; j++) {
    const uint32_t bits = static_cast<uint32_t>(values[j]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    out[j] = value * scale;
  }
}

class AdaptEmbedding final : public Op {
 public:
  explicit AdaptEmbedding(const Args& a)
      : table_(a), rows_(adapter_rows(a)), first_input_(a.i("first_input")),
        max_rank_(a.size("max_rank")), k_(a.size("k")), n_(a.size("n")), copy_(a.size("copy")),
        low_(a.ptr<float>("low")), out_(a.ptr<float>("out")),
        token_ids_(a.column<int32_t>("token_ids")) {
    table_.check_column(copy_);
  }

  void plan(const Step& step, int threads) override { rows_->make_once(step, threads); }
  int64_t tiles(const Step&, int) const override {
    return static_cast<int64_t>(rows_->groups.size());
  }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t g = begin; g < end; g++) {
      const auto& group = rows_->groups[g];
      const AdapterInput in = table_.input(group.place, first_input_);
      const int64_t rank = std::min(in.rank, max_rank_);
      const uint8_t* copy = table_.copy(group.place, copy_);
      for (int32_t j = group.first; j < group.first + group.count; j++) {
        const int64_t t = rows_->rows[j], id = token_ids_[t];
        const bool known = id >= 0 && id < k_;
        float* low = low_ + t * max_rank_;
        if (!known) std::memset(low, 0, 4 * rank);
        if (known) widen(in.a, table_.bf16, id * rank, rank, in.scale, low);
        if (known && copy) widen(copy, table_.bf16, id * n_, n_, 1.0f, out_ + t * n_);
      }
    }
  }

 private:
  AdapterTable table_;
  AdapterRows* rows_;
  int64_t first_input_, max_rank_, k_, n_, copy_;
  float *low_, *out_;
  ColumnOf<int32_t> token_ids_;
};

class AdaptHead final : public Op {
 public:
  explicit AdaptHead(const Args& a)
      : table_(a), rows_(adapter_rows(a)), x_(a.ptr<uint8_t>("x")), out_(a.ptr<float>("out")),
        k_(a.size("k")), n_(a.size("n")), out_stride_(a.size("out_stride")), copy_(a.size("copy")),
        panels_((n_ + kAdapterPanel - 1) / kAdapterPanel),
        across_((panels_ + kPanels - 1) / kPanels) {
    table_.check_column(copy_);
    if (n_ > out_stride_) throw std::invalid_argument("adapt_head: n is more than out_stride");
  }

  void plan(const Step& step, int threads) override {
    rows_->make_once(step, threads);
    groups_.clear();
    for (const auto& group : rows_->groups) {
      if (table_.copy(group.place, copy_)) groups_.push_back(group);
    }
  }
  int64_t tiles(const Step&, int) const override {
    return static_cast<int64_t>(groups_.size()) * across_;
  }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    const uint8_t* x[AdapterRows::kMostRows];
    float* out[AdapterRows::kMostRows];
    for (int64_t tile = begin; tile < end; tile++) {
      const auto& group = groups_[tile / across_];
      const int64_t first = tile % across_ * kPanels, count = std::min(kPanels, panels_ - first);
      const int64_t column = first * kAdapterPanel;
      const int64_t width = std::min(count * kAdapterPanel, n_ - column);
      for (int32_t j = 0; j < group.count; j++) {
        const int64_t row = rows_->rows[group.first + j];
        x[j] = x_ + row * k_ * 4;
        out[j] = out_ + row * out_stride_;
        std::memset(out[j] + column, 0, 4 * width);
      }
      kernel_({table_.copy(group.place, copy_), k_, n_, table_.bf16, Kind::f32, kAdapterPanel}, first,
              count, x, group.count, out);
    }
  }

 private:
  static constexpr int64_t kPanels = 8;
  AdapterTable table_;
  AdapterRows* rows_;
  const uint8_t* x_;
  float* out_;
  int64_t k_, n_, out_stride_, copy_, panels_, across_;
  std::vector<AdapterRows::Group> groups_;  // whose adapter has a head of its own
  decltype(&generic::adapter_expand) kernel_ = GALLEY_PICK(adapter_expand);
};

GALLEY_OP(adapt_embedding, AdaptEmbedding);
GALLEY_OP(adapt_head, AdaptHead);

}  // namespace
}  // namespace galley
