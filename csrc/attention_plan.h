// How one step's attention is divided into work items for the threads. This changes only which thread
// computes an item and in which order memory is read, never a bit of the result.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "program.h"

namespace galley {

// Some new tokens (queries) of one sequence, and some KV heads.
struct AttentionGroup {
  int32_t row, token, queries;  // row of the step, first token of the step
  int32_t position;             // of the first query
  int32_t head, heads;          // KV heads
  int64_t first_chunk, chunks;
  int64_t partial = -1;         // where its chunks' states lie in `partial`; -1 = the group is one item
  int32_t counter = -1;         // in `unfinished`
};

// Consecutive chunks of a group: all of them, or one.
struct AttentionItem {
  int32_t group;
  int64_t first_chunk, chunks;
};

struct AttentionGeometry {
  int64_t kv_heads, group;  // query heads per KV head
  int64_t state_size;       // floats of a row's state
  int64_t block_queries;    // most queries of a group
  int64_t window;           // 0 = none
  bool whole_rows;          // an output row must be written by one item

  // First position that the query at `position` sees.
  int64_t first_of(int64_t position) const {
    return window > 0 && position + 1 > window ? position + 1 - window : 0;
  }
  int64_t rows(const AttentionGroup& g) const { return g.heads * g.queries * group; }
};

// Tokens of a row that are in the cache when this step's attention runs.
inline int64_t known_tokens(const Step& step, int32_t row) {
  return step.computed[row] + step.query_start[row + 1] - step.query_start[row];
}

class AttentionPlan {
 public:
  void make(const AttentionGeometry& geometry, const Step& step, int threads);

  std::vector<AttentionGroup> groups;
  std::vector<AttentionItem> items;
  std::vector<std::atomic<int32_t>> unfinished;  // unfinished chunks of each split group
  float* partial = nullptr;                      // states of the chunks of split groups

 private:
  void add_groups(const AttentionGeometry& geometry, const Step& step, int32_t row, bool by_head);
  void split(const AttentionGeometry& geometry, int threads);
  std::vector<float> memory_;
};

}  // namespace galley
