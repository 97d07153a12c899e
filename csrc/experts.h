// Shared by the ops of an expert layer: which tokens each expert computes, and the experts' weights.
//
// A row of `chosen` is [top_k weights | top_k expert ids], as floats. Its last writer sorts the
// choices of all tokens by expert; each is a *place* of the buffers between the ops:
//
//   expert      0           3        7                     runs, in ascending order of experts
//   place     | 0 1 2 3 4 | 5 6 .. | .. tokens * top_k |   in a run: tokens in ascending order
//
// The order of a token's sum over its experts is that of the experts' ids, so its bits depend on
// nothing but its own row. Experts that no token has chosen have no run: their weights are not read.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "linear.h"
#include "program.h"

namespace galley {

struct ExpertRun {
  int32_t expert;
  int64_t begin, end;  // places
};

// Shared by the ops that read one `chosen`. Layers that use the same memory for it share one too:
// each sorts again.
class ExpertRuns final : public Plan {
 public:
  struct Geometry {
    const float* chosen;
    int64_t experts, top_k;
    bool operator==(const Geometry& o) const {
      return chosen == o.chosen && experts == o.experts && top_k == o.top_k;
    }
  };
  explicit ExpertRuns(const Geometry& geometry) : geometry_(geometry) {}
  const Geometry& geometry() const { return geometry_; }

  std::vector<int32_t> token;  // by place
  std::vector<float> weight;   // by place
  std::vector<ExpertRun> runs;
  std::vector<ExpertRun> pieces;  // runs in pieces of at most kChunkRows places

  // Call when `rows` more rows of `chosen` are written; the call for the last of them sorts.
  void written(int64_t rows);

 protected:
  void make(const Step& step, int threads) override;

 private:
  void sort();
  Geometry geometry_;
  int64_t tokens_ = 0;
  std::atomic<int64_t> unwritten_{0};
  std::vector<int64_t> next_;  // place of each expert's next token
};

// The runs of an op with the arguments `chosen`, experts and top_k.
ExpertRuns* expert_runs(const Args& a, const char* chosen);

// Jobs without rows for `count` weights [n, k], of the argument `name`: int64
// [count][kExpertNumbers]. The argument bias? is f32 [count][n].
constexpr int64_t kExpertNumbers = 9;  // address, format, n, k, group, zero, scale, offset, table
std::vector<LinearJob> expert_jobs(const Args& a, const char* name, int64_t count, int64_t n,
                                   int64_t k, Kind x_kind);

}  // namespace galley
