// Op `route`: the experts of each token. Pointers: logits (f32 [tokens][experts]), bias? (f32
// [experts], added to the scores for the choice alone), scales? (f32 [experts], factors of the
// weights), out (f32 [tokens][2 top_k]: weights, then ids). Ints: experts, top_k, score (0 softmax, 1 sigmoid, 2 softmax over the chosen ones, 3 the
// weight of each is its softmax over those of the rest that are near it), renormalise? (weights sum
// to 1), groups?, top_groups? (experts of the best groups alone can be chosen), group_top? (the score
// of a group is the sum of that many of its best). Floats: scale?, near? (3: largest difference, as
// a part of the larger magnitude). Tile: 8 tokens.
//
// Op `expert_rows`: the rows of x by place (experts.h). Pointers: x ([tokens][k]), chosen, out
// ([tokens * top_k][k]). Ints: k, experts, top_k, x_kind, out_kind (that of x, unless `weigh`),
// weigh? (x is f32 and multiplied with the token's weight). Tile: 8 places.
#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quantize_variants.h"
#include "scratch.h"

namespace galley {
namespace {

constexpr int64_t kTileRows = 8;

enum class Score : int { softmax = 0, sigmoid = 1, softmax_of_chosen = 2, softmax_of_near = 3 };

void softmax(float* x, int64_t n) {
  const float most = *std::max_element(x, x + n);
  float sum = 0.0f;
  for (int64_t i = 0; i < n; i++) sum += x[i] = std::exp(x[i] - most);
  for (int64_t i = 0; i < n; i++) x[i] /= sum;
}

// The best index that is not taken; the lowest of equals.
int64_t best_of(const float* x, const uint8_t* taken, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; i++) {
    if (!taken[i] && (best < 0 || x[i] > x[best])) best = i;
  }
  return best;
}

class Route final : public Op {
 public:
  explicit Route(const Args& a)
      : logits_(a.ptr<float>("logits")), bias_(a.ptr_or_null<float>("bias")),
        scales_(a.ptr_or_null<float>("scales")),
        out_(a.ptr<float>("out")), experts_(a.size("experts")), top_k_(a.size("top_k")),
        score_(a.choice("score", 4, Score::softmax)), renormalise_(a.choice("renormalise", 2, false)),
        groups_(a.i("groups", 1)), top_groups_(a.i("top_groups", 1)),
        group_top_(a.i("group_top", 1)), scale_(static_cast<float>(a.f("scale", 1.0))),
        near_(static_cast<float>(a.f("near", 0.0))), runs_(expert_runs(a, "out")) {
    if (groups_ < 1 || experts_ % groups_ != 0 || top_groups_ < 1 || top_groups_ > groups_ ||
        group_top_ < 1 || group_top_ > experts_ / groups_) {
      throw std::invalid_argument("groups of experts do not fit");
    }
    if (top_k_ > experts_ / groups_ * top_groups_) {
      throw std::invalid_argument("top_k is more than the experts to choose from");
    }
  }

  void plan(const Step& step, int threads) override { runs_->make_once(step, threads); }

  int64_t tiles(const Step& step, int) const override {
    return (step.tokens + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t first = begin * kTileRows, last = std::min<int64_t>(end * kTileRows, step.tokens);
    const int64_t floats = 2 * experts_ + groups_;
    float* scores = thread_scratch(floats + (experts_ + groups_) / 4 + 2);
    auto* taken = reinterpret_cast<uint8_t*>(scores + floats);
    for (int64_t t = first; t < last; t++) choose(t, scores, taken);
    runs_->written(last - first);
  }

 private:
  // scores: [experts] scores | [experts] what the choice goes by | [groups].
  void choose(int64_t t, float* scores, uint8_t* taken) const {
    const float* logits = logits_ + t * experts_;
    float* by = scores + experts_;
    std::copy_n(logits, experts_, scores);
    if (score_ == Score::softmax) softmax(scores, experts_);
    if (score_ == Score::sigmoid) {
      for (int64_t e = 0; e < experts_; e++) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    }
    for (int64_t e = 0; e < experts_; e++) by[e] = bias_ ? scores[e] + bias_[e] : scores[e];
    std::memset(taken, 0, experts_ + groups_);
    if (top_groups_ < groups_) close_groups(by, by + experts_, taken, taken + experts_);
    float* weights = out_ + t * 2 * top_k_;
    float sum = 0.0f;
    for (int64_t i = 0; i < top_k_; i++) {
      const int64_t e = best_of(by, taken, experts_);
      weights[i] = score_ == Score::softmax_of_near ? of_near(scores, taken, e) : scores[e];
      taken[e] = 1;
      weights[top_k_ + i] = static_cast<float>(e);
      sum += scores[e];
    }
    if (score_ == Score::softmax_of_chosen) {
      softmax(weights, top_k_);
    } else if (renormalise_) {
      for (int64_t i = 0; i < top_k_; i++) weights[i] /= sum + 1e-20f;
    }
    for (int64_t i = 0; i < top_k_; i++) {
      weights[i] *= scale_;
      if (scales_) weights[i] *= scales_[static_cast<int64_t>(weights[top_k_ + i])];
    }
  }

  // The softmax of the best logit over those that are not taken and near it.
  float of_near(const float* logits, const uint8_t* taken, int64_t best) const {
    const float most = logits[best];
    float sum = 0.0f;
    for (int64_t e = 0; e < experts_; e++) {
      const float size = std::max(std::abs(logits[e]), most);
      if (!taken[e] && !((most - logits[e]) / size > near_)) sum += std::exp(logits[e] - most);
    }
    return 1.0f / sum;
  }

  // Marks the experts of all groups but the best.
  void close_groups(const float* by, float* of_group, uint8_t* taken, uint8_t* open) const {
    const int64_t size = experts_ / groups_;
    for (int64_t g = 0; g < groups_; g++) {
      of_group[g] = 0.0f;
      for (int64_t i = 0; i < group_top_; i++) {
        const int64_t e = g * size + best_of(by + g * size, taken + g * size, size);
        taken[e] = 1;
        of_group[g] += by[e];
      }
    }
    for (int64_t i = 0; i < top_groups_; i++) open[best_of(of_group, open, groups_)] = 1;
    for (int64_t e = 0; e < experts_; e++) taken[e] = !open[e / size];
  }

  const float* logits_;
  const float *bias_, *scales_;
  float* out_;
  int64_t experts_, top_k_;
  Score score_;
  bool renormalise_;
  int64_t groups_, top_groups_, group_top_;
  float scale_, near_;
  ExpertRuns* runs_;
};

class ExpertRows final : public Op {
 public:
  explicit ExpertRows(const Args& a)
      : x_(a.ptr<uint8_t>("x")), out_(a.ptr<uint8_t>("out")), k_(a.size("k")),
        x_kind_(a.kind("x_kind")), out_kind_(a.kind("out_kind")),
        weigh_(a.choice("weigh", 2, false)), x_bytes_(activation_bytes(x_kind_, k_)),
        out_bytes_(activation_bytes(out_kind_, k_)), store_(GALLEY_PICK(store_rows)),
        runs_(expert_runs(a, "chosen")) {
    if (x_kind_ != (weigh_ ? Kind::f32 : out_kind_)) {
      throw std::invalid_argument("expert_rows: x_kind does not fit");
    }
  }

  void plan(const Step& step, int threads) override { runs_->make_once(step, threads); }

  int64_t tiles(const Step& step, int) const override {
    return (step.tokens * runs_->geometry().top_k + kTileRows - 1) / kTileRows;
  }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    const auto places = static_cast<int64_t>(runs_->token.size());
    const int64_t last = std::min(end * kTileRows, places);
    for (int64_t p = begin * kTileRows; p < last; p++) {
      const uint8_t* x = x_ + runs_->token[p] * x_bytes_;
      uint8_t* out = out_ + p * out_bytes_;
      if (weigh_) {
        float* scaled = thread_scratch(k_);
        const float* from = reinterpret_cast<const float*>(x);
        for (int64_t i = 0; i < k_; i++) scaled[i] = from[i] * runs_->weight[p];
        store_(scaled, k_, 1, k_, out_kind_, out);
      } else {
        std::memcpy(out, x, x_bytes_);
      }
    }
  }

 private:
  const uint8_t* x_;
  uint8_t* out_;
  int64_t k_;
  Kind x_kind_, out_kind_;
  bool weigh_;
  int64_t x_bytes_, out_bytes_;
  decltype(&generic::store_rows) store_;
  ExpertRuns* runs_;
};

GALLEY_OP(route, Route);
GALLEY_OP(expert_rows, ExpertRows);

}  // namespace

void ExpertRuns::make(const Step& step, int) {
  tokens_ = step.tokens;
  unwritten_.store(tokens_, std::memory_order_relaxed);
  token.resize(tokens_ * geometry_.top_k);
  weight.resize(token.size());
  next_.resize(geometry_.experts + 1);
}

void ExpertRuns::written(int64_t rows) {
  if (unwritten_.fetch_sub(rows, std::memory_order_acq_rel) != rows) return;
  unwritten_.store(tokens_, std::memory_order_relaxed);  // next layer
  sort();
}

void ExpertRuns::sort() {
  const int64_t top_k = geometry_.top_k, experts = geometry_.experts;
  auto expert_of = [&](int64_t t, int64_t i) {
    return static_cast<int64_t>(geometry_.chosen[(2 * t + 1) * top_k + i]);
  };
  std::fill(next_.begin(), next_.end(), 0);
  for (int64_t t = 0; t < tokens_; t++) {
    for (int64_t i = 0; i < top_k; i++) next_[expert_of(t, i) + 1]++;
  }
  runs.clear();
  pieces.clear();
  for (int64_t e = 0; e < experts; e++) {
    const int64_t begin = next_[e], end = begin + next_[e + 1];
    next_[e + 1] = end;
    if (begin == end) continue;
    const auto expert = static_cast<int32_t>(e);
    runs.push_back({expert, begin, end});
    const int64_t count = (end - begin + kChunkRows - 1) / kChunkRows;
    for (int64_t i = 0; i < count; i++) {
      pieces.push_back({expert, begin + (end - begin) * i / count,
                        begin + (end - begin) * (i + 1) / count});
    }
  }
  for (int64_t t = 0; t < tokens_; t++) {
    for (int64_t i = 0; i < top_k; i++) {
      const int64_t place = next_[expert_of(t, i)]++;
      token[place] = static_cast<int32_t>(t);
      weight[place] = geometry_.chosen[2 * t * top_k + i];
    }
  }
}

ExpertRuns* expert_runs(const Args& a, const char* chosen) {
  return a.plan<ExpertRuns>({a.ptr<float>(chosen), a.size("experts"), a.size("top_k")});
}

std::vector<LinearJob> expert_jobs(const Args& a, const char* name, int64_t count, int64_t n,
                                   int64_t k, Kind x_kind) {
  const int64_t* row = a.ptr<int64_t>(name);
  const float* biases = a.ptr_or_null<float>("bias");
  std::vector<LinearJob> jobs(count);
  for (LinearJob& job : jobs) {
    job.weight = weight_layout(
        WeightNumbers{row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8]});
    job.data = reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(row[0]));
    job.float8 = is_float8(job.weight, job.data);
    if (job.weight.n != n || job.weight.k != k || !job.weight.accepts(x_kind, job.float8)) {
      throw std::invalid_argument(std::string(name) + ": an expert's weight does not fit");
    }
    job.x_kind = x_kind;
    job.x_bytes = activation_bytes(x_kind, k);
    job.bias = biases ? biases + (&job - jobs.data()) * n : nullptr;
    job.out_columns = n;
    row += kExpertNumbers;
  }
  return jobs;
}

}  // namespace galley
