// How one step's attention is divided into work items for the threads. This changes only which
// thread computes an item and in which order memory is read, never a bit of the result.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "attention_layout.h"

namespace galley {

// Some new tokens (queries) of one sequence, and some KV heads.
struct AttentionGroup {
  int32_t row, token, queries;  // row of the step, first token of the step
  int32_t position;             // of the first query
  int32_t head, heads;          // KV heads
  int64_t first_chunk, chunks;
  int64_t partial = -1;         // offset of its chunks' states in `partial`; -1 = one item
  int32_t counter = -1;         // in `unfinished`
};

// Consecutive chunks of a group: all of them, or one.
struct AttentionItem {
  int32_t group;
  int64_t first_chunk, chunks;
};

struct AttentionGeometry {
  BlockTable table;
  int64_t kv_heads, group;  // query heads per KV head
  int64_t state_size;       // floats of a row's state
  int64_t block_queries;    // most queries of a group
  int64_t whole_tokens = 0;  // sequences of so many tokens have all queries in one group
  int64_t window;           // 0 = none
  int64_t span;             // 0, or the tokens of a part of the sequence that a query sees alone
  bool whole_rows;          // an output row must be written by one item
  bool causal = true;       // if not, a query sees known tokens behind it, too: as many as before it

  bool operator==(const AttentionGeometry& o) const {
    return table == o.table && kv_heads == o.kv_heads && group == o.group &&
           state_size == o.state_size && block_queries == o.block_queries &&
           whole_tokens == o.whole_tokens && window == o.window && span == o.span &&
           whole_rows == o.whole_rows && causal == o.causal;
  }
  // First position that the query at `position` sees.
  int64_t first_of(int64_t position) const {
    if (span > 0) return position / span * span;
    return window > 0 && position + 1 > window ? position + 1 - window : 0;
  }
  // One past the last position that the query at `position` sees, of `known` tokens.
  int64_t end_of(int64_t position, int64_t known) const {
    if (causal) return position + 1;
    return window > 0 && position + window < known ? position + window : known;
  }
  int64_t rows(const AttentionGroup& g) const { return g.heads * g.queries * group; }
};

// Tokens of a row that are in the cache when this step's attention runs.
inline int64_t known_tokens(const Step& step, int32_t row) {
  return step.computed[row] + step.query_start[row + 1] - step.query_start[row];
}

class AttentionPlan final : public Plan {
 public:
  using Geometry = AttentionGeometry;
  explicit AttentionPlan(const AttentionGeometry& geometry) : geometry_(geometry) {}
  const AttentionGeometry& geometry() const { return geometry_; }

  std::vector<AttentionGroup> groups;
  std::vector<AttentionItem> items;
  std::vector<std::atomic<int32_t>> unfinished;  // chunks left of each split group
  float* partial = nullptr;                      // states of the chunks of split groups

 protected:
  void make(const Step& step, int threads) override;

 private:
  void add_groups(const Step& step, int32_t row, bool by_head);
  void split(int threads);
  AttentionGeometry geometry_;
  std::vector<float> memory_;
};

}  // namespace galley
