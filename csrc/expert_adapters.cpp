// Ops `expert_adapter_shrink` and `expert_adapter_expand`: low-rank adapters of a layer's experts
// (adapters.h, experts.h). An expert's matrices A and B follow those of the one before it.
//
// expert_adapter_shrink: out = scale * A x, for places whose token has an adapter. Pointers: x (of
//   x_kind, [tokens][k] if by_token?, else by place), chosen, adapters, out (low of f32, by
//   place). Ints: k, experts, top_k, first_input, inputs (of an expert), max_rank, x_kind (f32,
//   bf16), by_token?, weigh? (times the token's weight). Tile: a panel of A, for up to 32 places
//   of one expert and one adapter.
// expert_adapter_expand: out += B x. Pointers: x (f32, as expert_adapter_shrink stores it), chosen,
//   adapters, parts (int32 [count][4], as of adapter_expand), out (f32 [rows][out_stride], rows are
//   tokens if by_token?, else places). Ints: experts, top_k, count, first_input, first_output,
//   inputs, max_rank, out_stride, by_token?. Tile: 8 panels of 16 outputs, of all places: what
//   several experts add to a token is added in ascending order of the experts.
// Both: ints width, all_inputs, all_outputs, bf16. Column: adapter.
#include <algorithm>
#include <stdexcept>

#include "adapters.h"
#include "experts.h"

namespace galley {
namespace {

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// Places of one expert and one adapter.
struct Group {
  int32_t adapter, expert;
  size_t first, count;  // of `places`
};

class ExpertAdapterOp : public Op {
 public:
  explicit ExpertAdapterOp(const Args& a)
      : table_(a), runs_(expert_runs(a, "chosen")), first_input_(a.i("first_input")),
        inputs_(a.size("inputs")), max_rank_(a.size("max_rank")),
        by_token_(a.choice("by_token", 2, false)), adapter_(a.column<int32_t>("adapter")) {}

  void plan(const Step& step, int threads) final { runs_->make_once(step, threads); }

 protected:
  AdapterInput input(const Group& group, int64_t i) const {
    const AdapterInput in = table_.input(group.adapter, first_input_ + group.expert * inputs_ + i);
    if (in.rank < 0 || in.rank > max_rank_) {
      throw std::invalid_argument("an adapter's rank is too large");
    }
    return in;
  }
  // The row of x or out that belongs to a place.
  int64_t row_of(int64_t place) const { return by_token_ ? runs_->token[place] : place; }

  // The experts of a token are known when the layer's router has run, so this is called by
  // `tiles`, once before each run.
  void make_groups(const Step& step) const {
    places_.clear(), groups_.clear();
    for (const ExpertRun& run : runs_->runs) {
      const size_t begin = places_.size();
      auto adapter_of = [&](int64_t p) {
        return adapter_[step.slots[step.token_row[runs_->token[p]]]];
      };
      for (int64_t p = run.begin; p < run.end; p++) {
        if (adapter_of(p) >= 0) places_.push_back(p);
      }
      std::stable_sort(places_.begin() + begin, places_.end(),
                       [&](int64_t a, int64_t b) { return adapter_of(a) < adapter_of(b); });
      for (size_t i = begin; i < places_.size(); i++) {
        const int32_t adapter = adapter_of(places_[i]);
        if (groups_.empty() || groups_.back().expert != run.expert ||
            groups_.back().adapter != adapter || groups_.back().count == kMostRows) {
          groups_.push_back({adapter, run.expert, i, 0});
        }
        groups_.back().count++;
      }
    }
  }

  static constexpr size_t kMostRows = AdapterRows::kMostRows;

  AdapterTable table_;
  ExpertRuns* runs_;
  int64_t first_input_, inputs_, max_rank_;
  bool by_token_;
  ColumnOf<int32_t> adapter_;
  mutable std::vector<int64_t> places_;
  mutable std::vector<Group> groups_;
};

class ExpertAdapterShrink final : public ExpertAdapterOp {
 public:
  explicit ExpertAdapterShrink(const Args& a)
      : ExpertAdapterOp(a), x_(a.ptr<uint8_t>("x")),
        low_(a.ptr<uint8_t>("out"), Kind::f32, inputs_, max_rank_), k_(a.size("k")),
        x_kind_(a.kind("x_kind")), weigh_(a.choice("weigh", 2, false)) {
    if (x_kind_ != Kind::f32 && x_kind_ != Kind::bf16) {
      throw std::invalid_argument("x_kind must be f32 or bf16");
    }
  }

  int64_t tiles(const Step& step, int) const override {
    make_groups(step);
    ends_.clear();
    int64_t count = 0;
    for (const Group& group : groups_) {
      for (int64_t i = 0; i < inputs_; i++) count += blocks(input(group, i).rank, kAdapterPanel);
      ends_.push_back(count);
    }
    return count;
  }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t tile = begin; tile < end; tile++) {
      const size_t g = std::upper_bound(ends_.begin(), ends_.end(), tile) - ends_.begin();
      int64_t block = tile - (g ? ends_[g - 1] : 0);
      for (int64_t i = 0; i < inputs_; i++) {
        const AdapterInput in = input(groups_[g], i);
        const int64_t count = blocks(in.rank, kAdapterPanel);
        if (block < count) {
          compute(groups_[g], i, in, block);
          break;
        }
        block -= count;
      }
    }
  }

 private:
  void compute(const Group& group, int64_t i, const AdapterInput& in, int64_t panel) const {
    const uint8_t* x[kMostRows];
    alignas(64) float sums[kMostRows * kAdapterPanel];
    for (size_t j = 0; j < group.count; j++) {
      x[j] = x_ + row_of(places_[group.first + j]) * k_ * (x_kind_ == Kind::bf16 ? 2 : 4);
    }
    kernel_({in.a + panel * adapter_panel_bytes(k_, table_.bf16), k_, table_.bf16, x_kind_}, x,
            static_cast<int64_t>(group.count), sums);
    for (size_t j = 0; j < group.count; j++) {
      const int64_t place = places_[group.first + j];
      const float scale = weigh_ ? in.scale * runs_->weight[place] : in.scale;
      low_.store(place, i, panel * kAdapterPanel, in.rank, sums + j * kAdapterPanel, scale);
    }
  }

  const uint8_t* x_;
  LowRows low_;
  int64_t k_;
  Kind x_kind_;
  bool weigh_;
  mutable std::vector<int64_t> ends_;  // of the groups' tiles
  decltype(&generic::adapter_shrink) kernel_ = GALLEY_PICK(adapter_shrink);
};

class ExpertAdapterExpand final : public ExpertAdapterOp {
 public:
  explicit ExpertAdapterExpand(const Args& a)
      : ExpertAdapterOp(a), low_(a.ptr<uint8_t>("x"), Kind::f32, inputs_, max_rank_), out_(a.ptr<float>("out")),
        out_stride_(a.size("out_stride")), first_output_(a.i("first_output")),
        parts_(adapter_parts(a, inputs_, out_stride_)) {}

  int64_t tiles(const Step& step, int) const override {
    make_groups(step);
    if (groups_.empty()) return 0;
    int64_t count = 0;
    for (const AdapterPart& part : parts_) count += blocks(part.panels(), kPanels);
    return count;
  }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t tile = begin; tile < end; tile++) {
      int64_t block = tile;
      for (size_t p = 0; p < parts_.size(); p++) {
        const int64_t count = blocks(parts_[p].panels(), kPanels);
        if (block < count) {
          for (const Group& group : groups_) compute(group, p, block * kPanels);
          break;
        }
        block -= count;
      }
    }
  }

 private:
  static constexpr int64_t kPanels = 8;

  void compute(const Group& group, size_t p, int64_t first) const {
    const AdapterPart& part = parts_[p];
    const AdapterInput in = input(group, part.input);
    if (!in.rank) return;
    const uint8_t* low[kMostRows];
    float* out[kMostRows];
    for (size_t j = 0; j < group.count; j++) {
      const int64_t place = places_[group.first + j];
      low[j] = low_.at(place, part.input);
      out[j] = out_ + row_of(place) * out_stride_ + part.column;
    }
    const auto number = static_cast<int64_t>(group.expert * parts_.size() + p);
    kernel_({table_.output(group.adapter, first_output_ + number), in.rank, part.outputs,
             table_.bf16, Kind::f32, part.step},
            first, std::min(kPanels, part.panels() - first), low,
            static_cast<int64_t>(group.count), out);
  }

  LowRows low_;
  float* out_;
  int64_t out_stride_, first_output_;
  std::vector<AdapterPart> parts_;
  decltype(&generic::adapter_expand) kernel_ = GALLEY_PICK(adapter_expand);
};

GALLEY_OP(expert_adapter_shrink, ExpertAdapterShrink);
GALLEY_OP(expert_adapter_expand, ExpertAdapterExpand);

}  // namespace
}  // namespace galley
