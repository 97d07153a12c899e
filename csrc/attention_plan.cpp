// Division of attention into work items. See attention_plan.h.
//
//   many new tokens    item = (block of queries, KV head): K and V stay in L1 for all its rows
//   few new tokens     item = (all new tokens, all KV heads): the cache is read in address order
//   ... and little work:  one item per KV head, so that all threads have some
//   a group that is a large part of the work: one item per chunk; the last to end merges them
#include "attention_plan.h"

#include <algorithm>

#include "attention.h"

namespace galley {

void AttentionPlan::make(const Step& step, int threads) {
  geometry_.table.check(step);
  for (int32_t r = 0; !geometry_.causal && r < step.rows; r++) {
    if (step.computed[r] == 0) continue;
    throw std::invalid_argument("attention: without causality a sequence is computed in one step; row " +
                                std::to_string(r) + " has " + std::to_string(step.computed[r]) +
                                " tokens of earlier steps");
  }
  groups.clear();
  items.clear();
  int64_t chunks = 0;
  for (int32_t r = 0; r < step.rows; r++) chunks += known_tokens(step, r) / kChunk + 1;
  const bool by_head = threads > 1 && chunks < 2 * threads;
  for (int32_t r = 0; r < step.rows; r++) add_groups(step, r, by_head);
  split(threads);
}

void AttentionPlan::add_groups(const Step& step, int32_t row, bool by_head) {
  const int32_t kv_heads = static_cast<int32_t>(geometry_.kv_heads);
  const int32_t queries = step.query_start[row + 1] - step.query_start[row];
  const bool one_head = (queries > geometry_.block_queries || by_head) && !geometry_.whole_rows;
  const bool whole = known_tokens(step, row) <= geometry_.whole_tokens;
  const int32_t block = whole ? queries : static_cast<int32_t>(geometry_.block_queries);
  for (int32_t q = 0; q < queries; q += block) {
    AttentionGroup g;
    g.row = row;
    g.token = step.query_start[row] + q;
    g.queries = std::min(block, queries - q);
    g.position = step.computed[row] + q;
    g.heads = one_head ? 1 : kv_heads;
    g.first_chunk = geometry_.first_of(g.position) / kChunk;
    const int64_t end = geometry_.end_of(g.position + g.queries - 1, known_tokens(step, row));
    g.chunks = (end - 1) / kChunk - g.first_chunk + 1;
    for (g.head = 0; g.head < kv_heads; g.head += g.heads) groups.push_back(g);
  }
}

void AttentionPlan::split(int threads) {
  int64_t work = 0;
  for (const AttentionGroup& g : groups) work += g.chunks * g.heads;
  int64_t floats = 0;
  int32_t counters = 0;
  for (size_t i = 0; i < groups.size(); i++) {
    AttentionGroup& g = groups[i];
    const bool is_large = threads > 1 && g.chunks > 1 && g.chunks * g.heads * 4 * threads > work;
    if (is_large) {
      g.partial = floats;
      g.counter = counters++;
      floats += g.chunks * geometry_.rows(g) * geometry_.state_size;
    }
    const int64_t step = is_large ? 1 : g.chunks;
    for (int64_t c = 0; c < g.chunks; c += step) {
      items.push_back({static_cast<int32_t>(i), g.first_chunk + c, step});
    }
  }
  constexpr int64_t kLineFloats = 16;
  if (static_cast<int64_t>(memory_.size()) < floats + kLineFloats) {
    memory_ = std::vector<float>(floats + kLineFloats);
  }
  const auto address = reinterpret_cast<uintptr_t>(memory_.data());
  partial = memory_.data() + (64 - address % 64) % 64 / sizeof(float);
  if (static_cast<int32_t>(unfinished.size()) < counters) {
    unfinished = std::vector<std::atomic<int32_t>>(counters);
  }
  for (const AttentionGroup& g : groups) {
    if (g.counter >= 0) unfinished[g.counter].store(static_cast<int32_t>(g.chunks));
  }
}

}  // namespace galley
