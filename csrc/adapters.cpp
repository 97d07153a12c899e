// Ops `adapter_shrink` and `adapter_expand`: low-rank adapters of a linear layer (adapters.h).
//
// adapter_shrink: low = scale * A x, for rows with an adapter. Pointers: x ([rows][x_stride] of
//   x_kind), adapters, out (low). Ints: k, first_input, inputs (matrices A of the layer), max_rank,
//   x_kind (f32, bf16: of low, too), x_stride? (default k).
//   Tile: a panel of A, for up to 32 rows of one adapter.
// adapter_expand: out += B low. Pointers: x (low), adapters, parts (int32 [count][4]: input, outputs,
//   first column, columns from panel to panel), out (f32 [rows][out_stride]). Ints: count, first_input,
//   first_output, inputs, max_rank, x_kind, out_stride.
//   Tile: 8 panels of 16 outputs.
// Both: adapters; ints width, all_inputs, all_outputs, bf16; rows (tokens, logits). Column: adapter.
// Where the layer is one product, adapted_linear (linear.cpp) does the work of adapter_expand.
#include "adapters_kernel.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace galley {

namespace {

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

}  // namespace

AdapterRows* adapter_rows(const Args& a) {
  const Dim rows = a.rows();
  if (rows.times != 1 || (rows.base != kTokens && rows.base != kLogits)) {
    throw std::invalid_argument("adapters are of tokens or of logit rows");
  }
  return a.plan<AdapterRows>({rows.base, a.column<int32_t>("adapter")});
}

std::vector<AdapterPart> adapter_parts(const Args& a, int64_t inputs, int64_t out_stride) {
  const AdapterPart* first = a.ptr<AdapterPart>("parts");
  std::vector<AdapterPart> parts(first, first + a.size("count"));
  for (const AdapterPart& part : parts) {
    const int64_t last = part.panels() - 1;
    const int64_t end = part.column + last * part.step + part.outputs - last * kAdapterPanel;
    if (part.input < 0 || part.input >= inputs || part.outputs <= 0 || part.column < 0 ||
        part.step < kAdapterPanel || end > out_stride) {
      throw std::invalid_argument("a part lies outside of out");
    }
  }
  return parts;
}

void AdapterRows::make(const Step& step, int) {
  struct Share {
    int32_t place, first, last;
  };
  std::vector<Share> shares;
  int32_t logit = 0;
  for (int32_t r = 0; r < step.rows; r++) {
    Share share{geometry_.adapter[step.slots[r]], step.query_start[r], step.query_start[r + 1]};
    if (geometry_.dimension == kLogits) {
      share.first = logit;
      while (logit < step.logits && step.logit_row[logit] == r) logit++;
      share.last = logit;
    }
    if (share.place >= 0 && share.first < share.last) shares.push_back(share);
  }
  std::stable_sort(shares.begin(), shares.end(),
                   [](const Share& a, const Share& b) { return a.place < b.place; });
  rows.clear(), groups.clear();
  const auto count = static_cast<size_t>(step.sizes[geometry_.dimension]);
  place.assign(count, kNone), next.assign(count, kNone), same_until.resize(count);
  for (const Share& share : shares) {
    for (int32_t i = share.first; i < share.last; i++) {
      if (!rows.empty() && place[rows.back()] == share.place) next[rows.back()] = i;
      place[i] = share.place;
      if (groups.empty() || groups.back().place != share.place ||
          groups.back().count == kMostRows) {
        groups.push_back({share.place, static_cast<int32_t>(rows.size()), 0});
      }
      rows.push_back(i);
      groups.back().count++;
    }
  }
  for (size_t i = count; i-- > 0;) {
    const bool same = i + 1 < count && place[i] == place[i + 1];
    same_until[i] = same ? same_until[i + 1] : static_cast<int32_t>(i + 1);
  }
}

void LowRows::store(int64_t row, int64_t input, int64_t first, int64_t rank, const float* values,
                    float scale) const {
  const int64_t count = std::min(rank - first, kAdapterPanel);
  if (kind != Kind::bf16) {
    float* to = reinterpret_cast<float*>(at(row, input)) + first;
    for (int64_t i = 0; i < count; i++) to[i] = values[i] * scale;
    return;
  }
  const bool is_last = first + kAdapterPanel >= rank;
  const int64_t end = is_last ? blocks(rank, kLowBlock) * kLowBlock - first : kAdapterPanel;
  uint16_t* to = reinterpret_cast<uint16_t*>(at(row, input)) + first;
  for (int64_t i = 0; i < count; i++) {
    const float value = values[i] * scale;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool is_nan = value != value;
    to[i] = static_cast<uint16_t>((is_nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  std::fill(to + count, to + end, uint16_t{0});
}

namespace {

// The work of all groups, as tiles of one numbering.
class GroupTiles {
 public:
  void clear() { ends_.clear(); }
  void add(int64_t tiles) { ends_.push_back(count() + tiles); }
  int64_t count() const { return ends_.empty() ? 0 : ends_.back(); }
  // The group of a tile, and the tile's number in it.
  std::pair<size_t, int64_t> find(int64_t tile) const {
    const size_t group = std::upper_bound(ends_.begin(), ends_.end(), tile) - ends_.begin();
    return {group, tile - (group ? ends_[group - 1] : 0)};
  }

 private:
  std::vector<int64_t> ends_;
};

// Steps of few rows are bound by memory and by the cost of a tile: a thread takes its share at once.
constexpr size_t kFewRows = 64;
constexpr int64_t kWholeShare = int64_t{1} << 40;

class AdapterOp : public Op {
 public:
  explicit AdapterOp(const Args& a)
      : table_(a), rows_(adapter_rows(a)), first_input_(a.i("first_input")),
        inputs_(a.size("inputs")), max_rank_(a.size("max_rank")), x_kind_(a.kind("x_kind")) {
    if (x_kind_ != Kind::f32 && x_kind_ != Kind::bf16) {
      throw std::invalid_argument("x_kind must be f32 or bf16");
    }
  }

  void plan(const Step& step, int threads) final {
    rows_->make_once(step, threads);
    tiles_.clear();
    for (const auto& group : rows_->groups) tiles_.add(group_tiles(group.place));
  }
  int64_t tiles(const Step&, int) const final { return tiles_.count(); }
  int64_t grain(const Step&) const final {
    return rows_->rows.size() <= kFewRows ? kWholeShare : 4;
  }

 protected:
  virtual int64_t group_tiles(int32_t place) const = 0;

  AdapterTable table_;
  AdapterRows* rows_;
  int64_t first_input_, inputs_, max_rank_;
  Kind x_kind_;
  GroupTiles tiles_;
};

class AdapterShrink final : public AdapterOp {
 public:
  explicit AdapterShrink(const Args& a)
      : AdapterOp(a), x_(a.ptr<uint8_t>("x")),
        low_(a.ptr<uint8_t>("out"), x_kind_, inputs_, max_rank_), k_(a.size("k")),
        x_bytes_(a.i("x_stride", k_) * (x_kind_ == Kind::bf16 ? 2 : 4)) {}

  void run(const Step&, int64_t begin, int64_t end, int) override {
    const uint8_t* x[AdapterRows::kMostRows];
    alignas(64) float sums[AdapterRows::kMostRows * kAdapterPanel];
    for (int64_t tile = begin; tile < end; tile++) {
      const Panel panel = panel_of(tile);
      if (tile + 1 < end) prefetch(panel_of(tile + 1));
      const auto& group = *panel.group;
      const int32_t* rows = rows_->rows.data() + group.first;
      for (int32_t j = 0; j < group.count; j++) x[j] = x_ + rows[j] * x_bytes_;
      kernel_({panel.a, k_, table_.bf16, x_kind_}, x, group.count, sums);
      for (int32_t j = 0; j < group.count; j++) {
        low_.store(rows[j], panel.input, panel.first, panel.in.rank, sums + j * kAdapterPanel,
                   panel.in.scale);
      }
    }
  }

 private:
  // Of a tile.
  struct Panel {
    const AdapterRows::Group* group;
    int64_t input, first;  // the panel's first row of A
    AdapterInput in;
    const uint8_t* a;
  };
  static constexpr int64_t kAhead = 4096;  // bytes of the next panel

  Panel panel_of(int64_t tile) const {
    const auto [g, number] = tiles_.find(tile);
    const AdapterRows::Group& group = rows_->groups[g];
    int64_t panel = number;
    for (int64_t i = 0;; i++) {
      const AdapterInput in = table_.input(group.place, first_input_ + i);
      const int64_t count = blocks(in.rank, kAdapterPanel);
      if (panel < count) {
        return {&group, i, panel * kAdapterPanel, in,
                in.a + panel * adapter_panel_bytes(k_, table_.bf16)};
      }
      panel -= count;
    }
  }
  void prefetch(const Panel& panel) const {
    const int64_t bytes = std::min(kAhead, adapter_panel_bytes(k_, table_.bf16));
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(panel.a + at, 0, 2);
  }

  int64_t group_tiles(int32_t place) const override {
    int64_t count = 0;
    for (int64_t i = 0; i < inputs_; i++) {
      const int64_t rank = table_.input(place, first_input_ + i).rank;
      if (rank < 0 || rank > max_rank_) throw std::invalid_argument("an adapter's rank is too large");
      count += blocks(rank, kAdapterPanel);
    }
    return count;
  }

  const uint8_t* x_;
  LowRows low_;
  int64_t k_, x_bytes_;
  decltype(&generic::adapter_shrink) kernel_ = GALLEY_PICK_TILES(adapter_shrink);
};

class AdapterExpand final : public AdapterOp {
 public:
  explicit AdapterExpand(const Args& a)
      : AdapterOp(a), low_(a.ptr<uint8_t>("x"), x_kind_, inputs_, max_rank_),
        out_(a.ptr<float>("out")), out_stride_(a.size("out_stride")), first_output_(a.i("first_output")),
        parts_(adapter_parts(a, inputs_, out_stride_)) {}

  void run(const Step&, int64_t begin, int64_t end, int) override {
    const uint8_t* low[AdapterRows::kMostRows];
    float* out[AdapterRows::kMostRows];
    for (int64_t tile = begin; tile < end; tile++) {
      auto [g, block] = tiles_.find(tile);
      const auto& group = rows_->groups[g];
      for (size_t p = 0; p < parts_.size(); p++) {
        const AdapterPart& part = parts_[p];
        const AdapterInput in = table_.input(group.place, first_input_ + part.input);
        const int64_t panels = in.rank ? blocks(part.outputs, kAdapterPanel) : 0;
        if (block >= blocks(panels, kPanels)) {
          block -= blocks(panels, kPanels);
          continue;
        }
        for (int32_t j = 0; j < group.count; j++) {
          const int64_t row = rows_->rows[group.first + j];
          low[j] = low_.at(row, part.input);
          out[j] = out_ + row * out_stride_ + part.column;
        }
        const int64_t first = block * kPanels;
        const int64_t output = first_output_ + static_cast<int64_t>(p);
        kernel_({table_.output(group.place, output), in.rank, part.outputs, table_.bf16, x_kind_,
                 part.step, table_.affine(group.place, output)},
                first, std::min(kPanels, panels - first), low, group.count, out);
        break;
      }
    }
  }

 private:
  static constexpr int64_t kPanels = 8;

  int64_t group_tiles(int32_t place) const override {
    int64_t count = 0;
    for (const AdapterPart& part : parts_) {
      const bool has = table_.input(place, first_input_ + part.input).rank > 0;
      if (has) count += blocks(blocks(part.outputs, kAdapterPanel), kPanels);
    }
    return count;
  }

  LowRows low_;
  float* out_;
  int64_t out_stride_, first_output_;
  std::vector<AdapterPart> parts_;
  decltype(&generic::adapter_expand) kernel_ = GALLEY_PICK_TILES(adapter_expand);
};

GALLEY_OP(adapter_shrink, AdapterShrink);
GALLEY_OP(adapter_expand, AdapterExpand);

}  // namespace
}  // namespace galley
