// One row of logits: its most likely tokens, and sampling from it.
#pragma once
#include <cstdint>
#include <vector>

#include "sample.h"

namespace galley {

// How a token is sampled; 0, 1, 0, 0 do nothing.
struct SampleParams {
  float temperature;  // 0 = greedy
  float top_p;
  float min_p;
  int32_t top_k;
  uint64_t seed;
  uint64_t position;  // absolute, of the token to be sampled
};

// Uniform in [0, 1), 53 bits: Philox4x32-10 of key `seed` and counter `position`.
double uniform(uint64_t seed, uint64_t position);

// A thread's working memory for sampling one row after another; grows to the vocabulary's size.
class RowSampler {
 public:
  // Indices of the k largest values (ties: lowest index first), in order. k <= n.
  const std::vector<int32_t>& largest(const float* x, int64_t n, int64_t k);
  // log(sum(exp(x))) of a row whose maximum is finite.
  double log_sum_exp(const float* x, int64_t n, float max);
  // A token, or -1 where none can be sampled: all are -infinity, or the largest is not a number.
  int32_t sample(const float* x, int64_t n, const SampleParams& params);

  RowScan scan(const float* x, int64_t n) const { return scan_(x, n); }
  int64_t count_greater(const float* x, int64_t n, float v) const { return count_(x, n, v); }
  // A writable copy of x, masked where a mask is given.
  float* copy(const float* x, int64_t n, const uint64_t* mask);
  // Repetition over the prompt and output tokens, frequency and presence over the output tokens.
  void penalise(float* x, int64_t n, const int32_t* tokens, int64_t num_prompt, int64_t num_tokens,
                float repetition, float frequency, float presence);

 private:
  float lower_bound_of_kth(const float* x, int64_t n, int64_t k);
  void collect(const float* x, int64_t n, float bound, const Weighing& w);
  template <class Keep> void keep_if(Keep keep);
  void keep_top_k(int64_t k);
  void keep_top_p(double mass, float max);
  int32_t sample_from_all(const float* x, int64_t n, const Weighing& w, double u);
  int32_t sample_from_candidates(double u) const;

  decltype(&generic::scan_row) scan_ = GALLEY_PICK(scan_row);
  decltype(&generic::mask_row) mask_ = GALLEY_PICK(mask_row);
  decltype(&generic::count_greater) count_ = GALLEY_PICK(count_greater);
  decltype(&generic::group_maxima) maxima_ = GALLEY_PICK(group_maxima);
  decltype(&generic::collect) collect_ = GALLEY_PICK(collect);
  decltype(&generic::weigh) weigh_ = GALLEY_PICK(weigh);
  decltype(&generic::weigh_blocks) weigh_blocks_ = GALLEY_PICK(weigh_blocks);
  std::vector<float> copy_, maxima_of_groups_, sorted_;
  std::vector<double> sums_;
  std::vector<int32_t> collected_, largest_, counts_;
  std::vector<uint64_t> keys_;
  // Candidates in ascending order of id: id, logit, exp((logit - max) / temperature).
  std::vector<int32_t> ids_;
  std::vector<float> values_, weights_;
};

}  // namespace galley
