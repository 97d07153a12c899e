// One row of logits. See sample_row.h.
//
// The vocabulary is never sorted. One or two passes first bound which tokens can matter:
//
//   top_k   the k-th largest of the maxima of groups of 64 is no larger than the k-th logit
//   min_p   e = exp((x - max) / temperature) >= min_p, so x >= max + temperature * log(min_p)
//   top_p   all tokens with e <= (1 - top_p) * sum / n together weigh at most (1 - top_p) * sum:
//           they are among those that top_p removes
//
// The few remaining candidates are examined one by one. Sampling walks them in the vocabulary's
// order and takes the first token at which the running sum exceeds u * sum.
#include "sample_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

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
  auto& maxima = maxima_of_groups_;
  maxima.resize((n + kMaxGroup - 1) / kMaxGroup);
  if (k > maxima_(x, n, maxima.data())) return -kInfinity;
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<float>());
  return maxima[k - 1];
}

const std::vector<int32_t>& RowSampler::largest(const float* x, int64_t n, int64_t k) {
  largest_.clear();
  if (k <= 0) return largest_;
  collected_.resize(n);
  const int64_t count = collect_(x, n, lower_bound_of_kth(x, n, k), collected_.data());
  keys_.clear();
  for (int64_t i = 0; i < count; i++) keys_.push_back(order_key(x[collected_[i]], collected_[i]));
  const auto middle = keys_.begin() + std::min(k, count);
  if (middle != keys_.end()) {
    std::nth_element(keys_.begin(), middle, keys_.end(), std::greater<uint64_t>());
  }
  std::sort(keys_.begin(), middle, std::greater<uint64_t>());
  for (auto key = keys_.begin(); key != middle; ++key) largest_.push_back(id_of(*key));
  return largest_;
}

double RowSampler::log_sum_exp(const float* x, int64_t n, float max) {
  sums_.resize((n + kSumBlock - 1) / kSumBlock);
  return max + std::log(weigh_blocks_(x, n, Weighing{max, 1.0f}, sums_.data()));
}

int32_t RowSampler::sample(const float* x, int64_t n, const SampleParams& params) {
  const RowScan row = scan_(x, n);
  if (row.has_nan || !(std::fabs(row.max) < kInfinity)) return -1;
  if (params.temperature == 0.0f) return row.argmax;
  const Weighing w{row.max, 1.0f / params.temperature};
  if (!std::isfinite(w.inverse_temperature)) return row.argmax;
  const double u = uniform(params.seed, params.position);
  const bool by_p = params.top_p < 1.0f, by_min = params.min_p > 0.0f;
  const bool by_k = params.top_k > 0 && params.top_k < n;
  if (!by_p && !by_min && !by_k) return sample_from_all(x, n, w, u);

  // A logit whose weight is certainly below `weight`.
  auto bound = [&](double weight) {
    const double logit = row.max + params.temperature * (std::log(weight) - 1e-3);
    return static_cast<float>(logit - 1e-5 * std::fabs(logit));
  };
  if (by_min || by_k) {
    float from = by_k ? lower_bound_of_kth(x, n, params.top_k) : -kInfinity;
    if (by_min) from = std::max(from, bound(params.min_p));
    collect(x, n, from, w);
    if (by_min) keep_if([&](size_t i) { return weights_[i] >= params.min_p; });
    if (by_k) keep_top_k(params.top_k);
    if (by_p) {
      const double sum = std::accumulate(weights_.begin(), weights_.end(), 0.0);
      keep_top_p(params.top_p * sum, row.max);
    }
  } else {
    sums_.resize((n + kSumBlock - 1) / kSumBlock);
    const double sum = weigh_blocks_(x, n, w, sums_.data());
    collect(x, n, bound((1.0 - params.top_p) * sum / n), w);
    keep_top_p(params.top_p * sum, row.max);
  }
  return sample_from_candidates(u);
}

void RowSampler::collect(const float* x, int64_t n, float bound, const Weighing& w) {
  ids_.resize(n);
  ids_.resize(collect_(x, n, bound, ids_.data()));
  values_.resize(ids_.size());
  weights_.resize(ids_.size());
  for (size_t i = 0; i < ids_.size(); i++) values_[i] = x[ids_[i]];
  weigh_(values_.data(), static_cast<int64_t>(ids_.size()), w, weights_.data());
}

// Candidates whose index `keep` accepts, in the same order.
template <class Keep> void RowSampler::keep_if(Keep keep) {
  size_t kept = 0;
  for (size_t i = 0; i < ids_.size(); i++) {
    const bool stays = keep(i);  // no branch: it could not be predicted
    ids_[kept] = ids_[i];
    values_[kept] = values_[i];
    weights_[kept] = weights_[i];
    kept += stays;
  }
  ids_.resize(kept);
  values_.resize(kept);
  weights_.resize(kept);
}

// All values that are no smaller than the k-th largest: equal ones stay together.
void RowSampler::keep_top_k(int64_t k) {
  if (static_cast<int64_t>(ids_.size()) <= k) return;
  sorted_ = values_;
  std::nth_element(sorted_.begin(), sorted_.begin() + (k - 1), sorted_.end(),
                   std::greater<float>());
  const float kth = sorted_[k - 1];
  keep_if([&](size_t i) { return values_[i] >= kth; });
}

// Keeps, in descending order (of equal values the lowest id first), every candidate before which
// less than `mass` has been kept. A histogram of the mass over the values finds the bin in which
// that ends; only this bin is sorted.
void RowSampler::keep_top_p(double mass, float max) {
  constexpr int kBins = 1024;
  float lowest = max;
  for (float v : values_) lowest = std::min(lowest, v > -kInfinity ? v : lowest);
  const float per_value = max - lowest > 1e-20f ? kBins / (max - lowest) : 0.0f;
  // Never smaller for a smaller value: each step of it is monotonic.
  auto bin_of = [&](float v) {
    return v > -kInfinity ? std::min(kBins - 1, static_cast<int>((max - v) * per_value)) : kBins;
  };
  double bins[kBins + 1] = {};
  for (size_t i = 0; i < ids_.size(); i++) bins[bin_of(values_[i])] += weights_[i];
  int last = 0;
  double before = 0;
  while (last < kBins && before + bins[last] < mass) before += bins[last++];

  keys_.clear();
  for (size_t i = 0; i < ids_.size(); i++) {
    if (bin_of(values_[i]) == last) keys_.push_back(order_key(values_[i], static_cast<int32_t>(i)));
  }
  std::sort(keys_.begin(), keys_.end(), std::greater<uint64_t>());
  size_t kept = 0;
  while (kept < keys_.size() && (before < mass || (last == 0 && kept == 0))) {
    before += weights_[id_of(keys_[kept++])];
  }
  for (size_t i = kept; i < keys_.size(); i++) weights_[id_of(keys_[i])] = -1.0f;
  keep_if([&](size_t i) { return (weights_[i] >= 0.0f) & (bin_of(values_[i]) <= last); });
}

int32_t RowSampler::sample_from_candidates(double u) const {
  const double sum = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  double running = 0;
  int32_t last = -1;
  for (size_t i = 0; i < ids_.size(); i++) {
    if (weights_[i] == 0.0f) continue;
    running += weights_[i];
    last = ids_[i];
    if (running > u * sum) break;
  }
  return last;
}

int32_t RowSampler::sample_from_all(const float* x, int64_t n, const Weighing& w, double u) {
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
