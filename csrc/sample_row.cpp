// One row of logits. See sample_row.h.
//
// Nothing sorts the vocabulary. Which tokens can matter is bounded first, in one or two passes:
//
//   top_k   the k-th largest of the maxima of groups of 64 is no larger than the k-th logit
//   min_p   e = exp((x - max) / temperature) >= min_p, so x >= max + temperature * log(min_p)
//   top_p   all tokens with e <= (1 - top_p) * sum / n together weigh at most (1 - top_p) * sum:
//           they are among those that are cut off
//
// The few candidates that are left are looked at one by one. A draw goes through what is kept in
// the vocabulary's order: the first token at which the running sum exceeds u * sum.
#include "sample_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

namespace galley {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Larger for a larger value; of equal values, for the lower index.
uint64_t order_key(float value, int32_t id) {
  uint32_t bits;
  const float positive_zero = value + 0.0f;  // -0 and 0 are equal
  std::memcpy(&bits, &positive_zero, 4);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
int32_t id_of(uint64_t key) { return static_cast<int32_t>(0xffffffffu - (key & 0xffffffffu)); }

}  // namespace

double uniform(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0],
                              static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1],
                              static_cast<uint32_t>(a)};
    std::memcpy(c, next, sizeof c);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (static_cast<uint64_t>(c[0]) << 32 | c[1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

float* RowSampler::copy(const float* x, int64_t n, const uint64_t* mask) {
  copy_.resize(n);
  if (mask) {
    mask_(x, mask, n, copy_.data());
  } else {
    std::memcpy(copy_.data(), x, n * sizeof(float));
  }
  return copy_.data();
}

void RowSampler::penalise(float* x, int64_t n, const int32_t* tokens, int64_t num_prompt,
                          int64_t num_tokens, float repetition, float frequency, float presence) {
  counts_.resize(n);  // of output tokens + 1, 0 = not seen; all 0 between calls
  auto inside = [n](int32_t id) { return id >= 0 && id < n; };
  for (int64_t i = 0; i < num_tokens; i++) {
    if (!inside(tokens[i])) continue;
    int32_t& count = counts_[tokens[i]];
    if (count == 0) count = 1;
    if (i >= num_prompt) count++;
  }
  for (int64_t i = 0; i < num_tokens; i++) {
    if (!inside(tokens[i]) || counts_[tokens[i]] == 0) continue;
    float& logit = x[tokens[i]];
    const float outputs = static_cast<float>(counts_[tokens[i]] - 1);
    logit = logit > 0 ? logit / repetition : logit * repetition;
    logit -= frequency * outputs;
    if (outputs > 0) logit -= presence;
    counts_[tokens[i]] = 0;
  }
}

float RowSampler::lower_bound_of_kth(const float* x, int64_t n, int64_t k) {
  values_.resize((n + kMaxGroup - 1) / kMaxGroup);
  const int64_t groups = maxima_(x, n, values_.data());
  if (k > groups) return -kInfinity;
  std::nth_element(values_.begin(), values_.begin() + (k - 1), values_.end(),
                   [](float a, float b) { return a > b; });
  return values_[k - 1];
}

const std::vector<int32_t>& RowSampler::largest(const float* x, int64_t n, int64_t k) {
  largest_.clear();
  if (k <= 0) return largest_;
  ids_.resize(n);
  const int64_t count = collect_(x, n, lower_bound_of_kth(x, n, k), ids_.data());
  keys_.clear();
  for (int64_t i = 0; i < count; i++) keys_.push_back(order_key(x[ids_[i]], ids_[i]));
  const auto middle = keys_.begin() + std::min(k, count);
  std::partial_sort(keys_.begin(), middle, keys_.end(), std::greater<uint64_t>());
  for (auto key = keys_.begin(); key != middle; ++key) largest_.push_back(id_of(*key));
  return largest_;
}

double RowSampler::log_sum_exp(const float* x, int64_t n, float max) {
  sums_.resize((n + kSumBlock - 1) / kSumBlock);
  return max + std::log(weigh_blocks_(x, n, Weighing{max, 1.0f}, sums_.data()));
}

int32_t RowSampler::draw(const float* x, int64_t n, const DrawParams& params) {
  const RowScan row = scan_(x, n);
  if (row.has_nan || !(std::fabs(row.max) < kInfinity)) return -1;
  if (params.temperature == 0.0f) return row.argmax;
  const Weighing w{row.max, 1.0f / params.temperature};
  if (!std::isfinite(w.inverse_temperature)) return row.argmax;
  const double u = uniform(params.seed, params.position);
  const bool by_p = params.top_p < 1.0f, by_min = params.min_p > 0.0f;
  const bool by_k = params.top_k > 0 && params.top_k < n;
  if (!by_p && !by_min && !by_k) return draw_from_all(x, n, w, u);

  // x at which a weight is certainly below `weight`.
  auto bound = [&](double weight) {
    const double at = row.max + params.temperature * (std::log(weight) - 1e-3);
    return static_cast<float>(at - 1e-5 * std::fabs(at));
  };
  if (by_min || by_k) {
    float from = by_k ? lower_bound_of_kth(x, n, params.top_k) : -kInfinity;
    if (by_min) from = std::max(from, bound(params.min_p));
    collect(x, n, from, w);
    if (by_min) keep_min_p(params.min_p);
    if (by_k) keep_top_k(params.top_k);
    if (by_p) {
      double sum = 0;
      for (const Candidate& c : candidates_) sum += c.weight;
      keep_top_p(params.top_p * sum);
    }
  } else {
    sums_.resize((n + kSumBlock - 1) / kSumBlock);
    const double sum = weigh_blocks_(x, n, w, sums_.data());
    collect(x, n, bound((1.0 - params.top_p) * sum / n), w);
    keep_top_p(params.top_p * sum);
  }
  return draw_from_candidates(u);
}

void RowSampler::collect(const float* x, int64_t n, float bound, const Weighing& w) {
  ids_.resize(n);
  const int64_t count = collect_(x, n, bound, ids_.data());
  values_.resize(count);
  weights_.resize(count);
  for (int64_t i = 0; i < count; i++) values_[i] = x[ids_[i]];
  weigh_(values_.data(), count, w, weights_.data());
  candidates_.resize(count);
  for (int64_t i = 0; i < count; i++) {
    candidates_[i] = {order_key(values_[i], ids_[i]), weights_[i], ids_[i]};
  }
}

void RowSampler::keep_min_p(float min_p) {
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                   [min_p](const Candidate& c) { return c.weight < min_p; }),
                    candidates_.end());
}

// All values that are no smaller than the k-th largest: equal ones stay together.
void RowSampler::keep_top_k(int64_t k) {
  if (static_cast<int64_t>(candidates_.size()) <= k) return;
  keys_.clear();
  for (const Candidate& c : candidates_) keys_.push_back(c.key >> 32);
  std::nth_element(keys_.begin(), keys_.begin() + (k - 1), keys_.end(), std::greater<uint64_t>());
  const uint64_t kth = keys_[k - 1];
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                   [kth](const Candidate& c) { return c.key >> 32 < kth; }),
                    candidates_.end());
}

// In descending order, every candidate before which less than `mass` has been kept.
void RowSampler::keep_top_p(double mass) {
  order_ = candidates_;
  auto better = [](const Candidate& a, const Candidate& b) { return a.key > b.key; };
  double before = 0;
  auto first = order_.begin(), last = order_.end();  // the last one to be kept is in here
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, better);
    double upper = 0;
    for (auto c = first; c != middle; ++c) upper += c->weight;
    if (before + upper >= mass) {
      last = middle;
    } else {
      before += upper;
      first = middle;
    }
  }
  const uint64_t least = first->key;
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                   [least](const Candidate& c) { return c.key < least; }),
                    candidates_.end());
}

int32_t RowSampler::draw_from_candidates(double u) const {
  double sum = 0, running = 0;
  for (const Candidate& c : candidates_) sum += c.weight;
  int32_t last = -1;
  for (const Candidate& c : candidates_) {
    if (c.weight == 0.0f) continue;
    running += c.weight;
    last = c.id;
    if (running > u * sum) break;
  }
  return last;
}

int32_t RowSampler::draw_from_all(const float* x, int64_t n, const Weighing& w, double u) {
  sums_.resize((n + kSumBlock - 1) / kSumBlock);
  const double target = u * weigh_blocks_(x, n, w, sums_.data());
  double running = 0;
  size_t block = 0;
  while (block + 1 < sums_.size() && running + sums_[block] <= target) running += sums_[block++];
  const int64_t start = static_cast<int64_t>(block) * kSumBlock;
  weights_.resize(kSumBlock);
  const int64_t count = std::min(kSumBlock, n - start);
  weigh_(x + start, count, w, weights_.data());
  int32_t last = -1;
  for (int64_t i = 0; i < count; i++) {
    if (weights_[i] == 0.0f) continue;
    running += weights_[i];
    last = static_cast<int32_t>(start + i);
    if (running > target) break;
  }
  return last;
}

}  // namespace galley
