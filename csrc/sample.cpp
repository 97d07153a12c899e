// Op `sample`: logprobs and the next token of each logits row, in vLLM's order.
// Pointers: logits (f32 [logits][logits_stride]), token_ids (int32 [logits]), logprob? (f32
// [logits]), rank? (int32 [logits]), top_ids? (int32 [logits][top_stride]), top_logprobs? (f32,
// same shape). Ints: vocab, logits_stride (default vocab), top_stride (0 = no lists). Columns:
// history, num_tokens, num_prompt, and the optional ones below.
// Tile: one row.
//
//   logits ── logprobs (raw) ──▶ logprob, rank, top lists
//      └─ mask ─ bias ─ penalties ─ temperature ─ min_p ─ top_k ─ top_p ─ sample ──▶ token id
//
// A token is a function of (row, parameters, history, seed, absolute position) alone. Token -1:
// none can be sampled, because all are masked or a logit is not a number. A row that is not sampled
// (logit_sampled 0) gets its known next token, and the logprobs of that.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sample_kernel.h"
#include "sample_row.h"

namespace galley {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// How the sampler treats a row: columns by slot, and by logit row [L]. All may be absent.
struct SamplingColumns {
  const Args& args;  // used only while the op is made
  template <class T> ColumnOf<T> column(const char* name) const {
    return args.optional_column<T>(name);
  }

  ColumnOf<float> temperature = column<float>("temperature");  // 0 = greedy
  ColumnOf<float> top_p = column<float>("top_p");              // 1 = off
  ColumnOf<float> min_p = column<float>("min_p");              // 0 = off
  ColumnOf<int32_t> top_k = column<int32_t>("top_k");          // <= 0 = off
  ColumnOf<float> presence = column<float>("presence");        // 0 = off; over output tokens
  ColumnOf<float> frequency = column<float>("frequency");      // 0 = off; over output tokens
  ColumnOf<float> repetition = column<float>("repetition");    // 1 = off; over prompt and output
  ColumnOf<uint64_t> seed = column<uint64_t>("seed");
  ColumnOf<int32_t> ahead = column<int32_t>("ahead");  // tokens between a row's and the sampled one
  ColumnOf<int32_t> num_logprobs = column<int32_t>("num_logprobs");  // -1 = none requested
  ColumnOf<uint64_t> mask = column<uint64_t>("mask");  // [L] address of a bit per token, or 0
  ColumnOf<int32_t> bias_indptr = column<int32_t>("bias_indptr");  // [L + 1] logit bias, ragged
  ColumnOf<int32_t> bias_ids = column<int32_t>("bias_ids");
  ColumnOf<float> bias_values = column<float>("bias_values");
};

class Sample final : public Op {
 public:
  explicit Sample(const Args& a)
      : logits_(a.ptr<float>("logits")), token_ids_(a.ptr<int32_t>("token_ids")),
        logprob_(a.ptr_or_null<float>("logprob")), rank_(a.ptr_or_null<int32_t>("rank")),
        top_ids_(a.ptr_or_null<int32_t>("top_ids")),
        top_logprobs_(a.ptr_or_null<float>("top_logprobs")), vocab_(a.size("vocab")),
        stride_(a.i("logits_stride", vocab_)), top_stride_(a.i("top_stride", 0)),
        columns_{a}, history_(a.column<int32_t>("history")),
        num_tokens_(a.column<int32_t>("num_tokens")), num_prompt_(a.column<int32_t>("num_prompt")) {
    if (vocab_ > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument("vocab is too large");
    }
    if (stride_ < vocab_) throw std::invalid_argument("logits_stride is less than vocab");
    if (top_stride_ > 0 && (!top_ids_ || !top_logprobs_)) {
      throw std::invalid_argument("top_stride needs top_ids and top_logprobs");
    }
  }

  void plan(const Step&, int threads) override {
    if (static_cast<int>(samplers_.size()) < threads) samplers_.resize(threads);
  }

  int64_t tiles(const Step& step, int) const override { return step.logits; }

  void run(const Step& step, int64_t begin, int64_t end, int thread) override {
    for (int64_t l = begin; l < end; l++) run_row(step, l, samplers_[thread]);
  }

 private:
  void run_row(const Step& step, int64_t l, RowSampler& sampler) const;
  int32_t sample(const Step& step, int64_t l, RowSampler& sampler) const;
  const float* adjusted(const Step& step, int64_t l, RowSampler& sampler) const;
  void write_logprobs(const float* x, int64_t l, int32_t token, int64_t k,
                      RowSampler& sampler) const;

  const float* logits_;
  int32_t* token_ids_;
  float* logprob_;
  int32_t* rank_;
  int32_t* top_ids_;
  float* top_logprobs_;
  int64_t vocab_, stride_, top_stride_;
  SamplingColumns columns_;
  ColumnOf<int32_t> history_, num_tokens_, num_prompt_;
  std::vector<RowSampler> samplers_;  // [threads]
};

void Sample::run_row(const Step& step, int64_t l, RowSampler& sampler) const {
  const int32_t slot = step.slots[step.logit_row[l]];
  const int64_t next = step.positions[step.logit_index[l]] + 1;
  int32_t token = -1;
  if (step.logit_sampled[l]) {
    token = sample(step, l, sampler);
  } else if (next < num_tokens_[slot]) {
    token = history_.row(slot)[next];
  }
  token_ids_[l] = token;
  const int32_t k = columns_.num_logprobs.get(slot, -1);
  if (k >= 0) write_logprobs(logits_ + l * stride_, l, token, k, sampler);
}

int32_t Sample::sample(const Step& step, int64_t l, RowSampler& sampler) const {
  const int32_t slot = step.slots[step.logit_row[l]];
  SampleParams params;
  params.temperature = columns_.temperature.get(slot, 0.0f);
  params.top_p = columns_.top_p.get(slot, 1.0f);
  params.min_p = columns_.min_p.get(slot, 0.0f);
  params.top_k = columns_.top_k.get(slot, 0);
  params.seed = columns_.seed.get(slot, uint64_t{0});
  params.position = static_cast<uint64_t>(step.positions[step.logit_index[l]]) + 1 +
                    static_cast<uint64_t>(columns_.ahead.get(slot, 0));
  const float* x = adjusted(step, l, sampler);
  return x ? sampler.sample(x, vocab_, params) : -1;
}

// The row with mask, bias and penalties applied; null where it is broken.
const float* Sample::adjusted(const Step& step, int64_t l, RowSampler& sampler) const {
  const int32_t slot = step.slots[step.logit_row[l]];
  const float* raw = logits_ + l * stride_;
  const uint64_t* mask =
      reinterpret_cast<const uint64_t*>(static_cast<uintptr_t>(columns_.mask.get(l, 0)));
  const int32_t bias_begin = columns_.bias_indptr.get(l, 0);
  const int32_t bias_end = columns_.bias_indptr.get(l + 1, 0);
  const float repetition = columns_.repetition.get(slot, 1.0f);
  const float frequency = columns_.frequency.get(slot, 0.0f);
  const float presence = columns_.presence.get(slot, 0.0f);
  const bool penalties = repetition != 1.0f || frequency != 0.0f || presence != 0.0f;
  if (!mask && bias_begin == bias_end && !penalties) return raw;
  // A mask could hide that the row is broken; the result would then depend on the mask.
  if (mask && sampler.scan(raw, vocab_).has_nan) return nullptr;
  float* x = sampler.copy(raw, vocab_, mask);
  for (int32_t i = bias_begin; i < bias_end; i++) {
    const int32_t id = columns_.bias_ids[i];
    if (id >= 0 && id < vocab_) x[id] += columns_.bias_values[i];
  }
  if (penalties) {
    const int64_t known = step.positions[step.logit_index[l]] + 1;
    const int64_t prompt = std::min<int64_t>(num_prompt_[slot], known);
    sampler.penalise(x, vocab_, history_.row(slot), prompt, known,
                     repetition, frequency, presence);
  }
  return x;
}

void Sample::write_logprobs(const float* x, int64_t l, int32_t token, int64_t k,
                            RowSampler& sampler) const {
  const RowScan row = sampler.scan(x, vocab_);
  const int64_t top = std::min({k, top_stride_, vocab_});
  int32_t* ids = top_ids_ + l * top_stride_;
  float* logprobs = top_logprobs_ + l * top_stride_;
  float own = -kInfinity;
  int32_t rank = 0;
  if (row.has_nan || !(std::fabs(row.max) < kInfinity)) {
    // A broken row has no order: list any tokens, with logprob -infinity and rank 0.
    for (int64_t i = 0; i < top; i++) ids[i] = static_cast<int32_t>(i), logprobs[i] = -kInfinity;
  } else {
    const double log_sum = sampler.log_sum_exp(x, vocab_, row.max);
    if (token >= 0 && token < vocab_) {
      own = static_cast<float>(x[token] - log_sum);
      rank = static_cast<int32_t>(1 + sampler.count_greater(x, vocab_, x[token]));
    }
    const auto& largest = sampler.largest(x, vocab_, top);
    for (int64_t i = 0; i < top; i++) {
      ids[i] = largest[i];
      logprobs[i] = static_cast<float>(x[largest[i]] - log_sum);
    }
  }
  if (logprob_) logprob_[l] = own;
  if (rank_) rank_[l] = rank;
}

GALLEY_OP(sample, Sample);

}  // namespace
}  // namespace galley
