// Division of a step's tokens into the runs that one sequence adds to one page of the cache: tiles
// of the ops that write K and V, so that no two threads share a line of K.
#pragma once
#include <algorithm>
#include <vector>

#include "attention_layout.h"

namespace galley {

struct PageRun {
  int32_t row, token;  // of the step
  int32_t position;    // in the sequence
  int32_t count;       // tokens
};

class PageRuns final : public Plan {
 public:
  using Geometry = BlockTable;
  explicit PageRuns(const BlockTable& table) : table_(table) {}
  const BlockTable& geometry() const { return table_; }

  std::vector<PageRun> runs;

 protected:
  void make(const Step& step, int) override {
    table_.check(step);
    runs.clear();
    for (int32_t r = 0; r < step.rows; r++) {
      int32_t position = step.computed[r];
      for (int32_t t = step.query_start[r]; t < step.query_start[r + 1];) {
        const int32_t room = static_cast<int32_t>(kPage - position % kPage);
        const int32_t count = std::min(room, step.query_start[r + 1] - t);
        runs.push_back({r, t, position, count});
        t += count;
        position += count;
      }
    }
  }

 private:
  BlockTable table_;
};

}  // namespace galley
