// Recurrent states in the cache, and the base of the ops that update them.
//
//   block table of a slot   [ blocks of the state after `interval` tokens | after 2 interval | ... ]
//   blocks of one state     units are counted through them, `per_block` in each; a layer's state
//                           is the units first .. first + units - 1
//
// The rule that makes the result the same for any chunking: a unit's tokens are computed in order,
// one definition for prefill and decode, with the state in float32 between any two of them.
//
// A rejected draft cannot be removed from a state. So before each draft the state is copied to a
// snapshot, and after a rejection it is copied back (the op state_rewind):
//
//   tokens of a row    known  known  draft 0  draft 1  draft 2      draft 1 is rejected:
//   snapshots                       0        1        2             1 is the state of the row
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "program.h"

namespace galley {

// The drafts of a step: a row's sampled positions, all but the first of them.
class DraftPlan final : public Plan {
 public:
  struct Geometry {
    bool operator==(const Geometry&) const { return true; }
  };
  explicit DraftPlan(const Geometry&) {}
  Geometry geometry() const { return {}; }
  // Number of the row's first draft among those of the step.
  int32_t first(int32_t row) const { return first_[row]; }
  int32_t count(int32_t row) const { return first_[row + 1] - first_[row]; }
  int32_t total(const Step& step) const { return first_[step.rows]; }

 protected:
  void make(const Step& step, int) override {
    first_.assign(step.rows + 1, 0);
    for (int32_t l = 0; l < step.logits; l++) {
      first_[step.logit_row[l] + 1] += step.logit_sampled[l];
    }
    for (int32_t r = 0; r < step.rows; r++) {
      first_[r + 1] = first_[r] + std::max(first_[r + 1] - 1, 0);
    }
  }

 private:
  std::vector<int32_t> first_;
};

class StateCache {
 public:
  // `units`, `unit_size`: of the layer's state, in floats.
  StateCache(const Args& a, int64_t units, int64_t unit_size)
      : base_(a.ptr<uint8_t>("state")), block_stride_(a.size("state_block_stride")),
        first_(a.i("state_first", 0)), per_block_(a.size("state_per_block")),
        width_(a.size("state_width")), interval_(a.i("state_interval", 0)), units_(units),
        unit_bytes_(unit_size * 4), table_(a.column<int32_t>("block_table")),
        snapshots_(a.ptr_or_null<uint8_t>("snapshots")), most_drafts_(a.i("most_drafts", 0)),
        drafts_(a.plan<DraftPlan>({})) {
    if (first_ < 0 || interval_ < 0) {
      throw std::invalid_argument("state_first and state_interval must not be negative");
    }
    if (per_block_ * unit_bytes_ > block_stride_) {
      throw std::invalid_argument("state_per_block units are larger than a block");
    }
    if (first_ + units_ > per_block_ * width_) {
      throw std::invalid_argument("the state's units are beyond its blocks");
    }
  }

  int64_t units() const { return units_; }

  // Throws std::invalid_argument where a row of the step is longer than its block table, or the
  // step has more drafts than there are snapshots.
  void plan(const Step& step, int threads) {
    drafts_->make_once(step, threads);
    if (drafts_->total(step) > (snapshots_ == nullptr ? 0 : most_drafts_)) {
      throw std::invalid_argument("there are no snapshots for " +
                                  std::to_string(drafts_->total(step)) + " drafts");
    }
    for (int32_t r = 0; r < step.rows; r++) {
      const int64_t length = step.computed[r] + step.query_start[r + 1] - step.query_start[r];
      if (length > 0 && (state_of(length - 1) + 1) * width_ > table_.stride()) {
        throw std::invalid_argument("the states of row " + std::to_string(r) +
                                    " are beyond its block table");
      }
    }
  }

  // Calls update(state, token, count) for the row's tokens in order, in runs that one set of blocks
  // takes; `state` is the unit's, to be updated in place.
  template <class Update>
  void for_each_run(const Step& step, int32_t row, int64_t unit, const Update& update) const {
    for_each_run<1>(step, row, unit, 1, [&](float* const* states, int64_t token, int64_t count) {
      update(states[0], token, count);
    });
  }

  // The same with the states of `units` <= kMost units, from `unit` on.
  template <int kMost, class Update>
  void for_each_run(const Step& step, int32_t row, int64_t unit, int64_t units,
                    const Update& update) const {
    const int32_t slot = step.slots[row];
    int64_t position = step.computed[row];
    int32_t token = step.query_start[row];
    const int32_t stop = step.query_start[row + 1];
    const int32_t known = stop - drafts_->count(row);  // tokens from here on are drafts
    while (token < stop) {
      const int64_t index = state_of(position);
      float* states[kMost];
      for (int64_t i = 0; i < units; i++) {
        states[i] = at(slot, index, unit + i);
        if (position == 0) {
          std::memset(states[i], 0, unit_bytes_);
        } else if (interval_ > 0 && position % interval_ == 0) {
          std::memcpy(states[i], at(slot, index - 1, unit + i), unit_bytes_);
        }
      }
      int32_t count = known - token;
      if (token >= known) {
        count = 1;
        for (int64_t i = 0; i < units; i++) {
          std::memcpy(snapshot(drafts_->first(row) + token - known, unit + i), states[i],
                      unit_bytes_);
        }
      }
      if (interval_ > 0) {
        count = static_cast<int32_t>(
            std::min<int64_t>(count, (index + 1) * interval_ - position));
      }
      update(states, token, count);
      token += count;
      position += count;
    }
  }

  // The unit's state of a row becomes what it was before the draft number `kept` of the row.
  void rewind(const Step& step, int32_t row, int64_t unit, int32_t kept) const {
    const int32_t drafts = drafts_->count(row);
    if (kept < 0 || kept >= drafts) return;
    const int64_t end =
        step.computed[row] + step.query_start[row + 1] - step.query_start[row] - drafts + kept;
    std::memcpy(at(step.slots[row], state_of(end - 1), unit),
                snapshot(drafts_->first(row) + kept, unit), unit_bytes_);
  }

 private:
  // The index of the sequence's state that holds the token at `position`.
  int64_t state_of(int64_t position) const { return interval_ > 0 ? position / interval_ : 0; }
  float* at(int32_t slot, int64_t index, int64_t unit) const {
    const int64_t number = first_ + unit;
    const int64_t block = table_.row(slot)[index * width_ + number / per_block_];
    return reinterpret_cast<float*>(base_ + block * block_stride_ +
                                    number % per_block_ * unit_bytes_);
  }
  uint8_t* snapshot(int64_t draft, int64_t unit) const {
    return snapshots_ + (draft * units_ + unit) * unit_bytes_;
  }

  uint8_t* base_;
  int64_t block_stride_, first_, per_block_, width_, interval_, units_, unit_bytes_;
  ColumnOf<int32_t> table_;
  uint8_t* snapshots_;
  int64_t most_drafts_;
  DraftPlan* drafts_;
};

// Base of the ops over a state. Tile: one unit of one sequence; neighbouring tiles are sequences, so
// that threads share out the units.
class StateOp : public Op {
 public:
  explicit StateOp(const StateCache& state) : state_(state) {}

  void plan(const Step& step, int threads) override { state_.plan(step, threads); }

  int64_t tiles(const Step& step, int) const override { return state_.units() * step.rows; }

 protected:
  StateCache state_;
};

// Columns of a value: float rows with a stride.
struct Rows {
  const float* data = nullptr;
  int64_t stride = 0;
  const float* row(int64_t i) const { return data + i * stride; }
  explicit operator bool() const { return data != nullptr; }
};

// The pointer `name` and its NAME_stride, at least `width`.
inline Rows rows_argument(const Args& a, const std::string& name, int64_t width,
                          bool optional = false) {
  const float* data = optional ? a.ptr_or_null<float>(name) : a.ptr<float>(name);
  const int64_t stride = a.i(name + "_stride", width);
  if (stride < width) {
    throw std::invalid_argument(name + "_stride is less than its " + std::to_string(width) +
                                " columns");
  }
  return {data, stride};
}

}  // namespace galley
