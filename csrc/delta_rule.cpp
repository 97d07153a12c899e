// Ops over states that are corrected by what they hold under a key (delta_rule_kernel.h). The units
// of their states are heads (delta_unit).
//
// `gated_delta_rule`: q, k of unit length (q / sqrt(keys)), g = exp(-exp(a_log) * softplus(alpha +
//   dt_bias)), beta = sigmoid(beta): S = g S + k (beta (v - g kᵀ S)), out = qᵀ S. Pointers: q, k (f32
//   [tokens][key_heads * keys]), v, out (f32 [tokens][heads * values]), alpha, beta (f32
//   [tokens][heads]), a_log, dt_bias (f32 [heads]), state. Ints: heads, key_heads (head h reads key
//   head h / (heads / key_heads)), in_turn? (1 = key head h % key_heads), by_key? (1 = a decay of each
//   key: alpha [tokens][heads * keys], dt_bias [heads * keys]), keys, values, q_stride?, k_stride?,
//   v_stride?, alpha_stride?, beta_stride?, and those of the state (state.h). Floats: eps, of the lengths.
// `wkv7`: per head, with sigmoids of w, a and mix, d = exp(-exp(-0.5) * w), u = k * k_k of unit length,
//   k' = k * (1 + (a - 1) * k_a), v' = v + (first - v) * mix (v where there is no first): S = diag(d) S +
//   k' v'ᵀ - (u * a) (uᵀ S), y = rᵀ S; out = norm(y) * weight + bias + (r * k' * r_k summed) * v', with
//   norm to mean 0 and variance 1. Pointers: r, w, k, v, a, first?, mix?, out (f32 [tokens][heads *
//   size]), k_k, k_a, r_k, weight, bias (f32 [heads * size]), state. Ints: heads, size, NAME_stride? of
//   each value, and those of the state. Floats: eps, added to the variance.
#include "delta_rule_kernel.h"

#include <cmath>

#include "scratch.h"
#include "state.h"

namespace galley {
namespace {

class GatedDeltaRule final : public StateOp {
 public:
  explicit GatedDeltaRule(const Args& a)
      : StateOp(StateCache(a, a.size("heads"), delta_unit(a.size("keys"), a.size("values")))),
        heads_(a.size("heads")), key_heads_(a.size("key_heads")),
        in_turn_(a.choice("in_turn", 2, false)), keys_(a.size("keys")),
        decays_(a.choice("by_key", 2, false) ? keys_ : 1),
        values_(a.size("values")), q_(rows_argument(a, "q", key_heads_ * keys_)),
        k_(rows_argument(a, "k", key_heads_ * keys_)), v_(rows_argument(a, "v", heads_ * values_)),
        alpha_(rows_argument(a, "alpha", heads_ * decays_)), beta_(rows_argument(a, "beta", heads_)),
        a_log_(a.ptr<float>("a_log")), dt_bias_(a.ptr<float>("dt_bias")),
        out_(a.ptr<float>("out")), eps_(a.f("eps")),
        kernel_(a.choice("by_key", 2, false) ? GALLEY_PICK(keyed_delta_run)
                                             : GALLEY_PICK(gated_delta_run)) {
    if (heads_ % key_heads_ != 0) throw std::invalid_argument("key_heads must divide heads");
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    float* scratch = thread_scratch(delta_scratch(keys_));
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t head = tile / step.rows, key = key_head(head) * keys_;
      const auto update = [&](float* unit, int64_t token, int64_t count) {
        GatedDeltaRun run{};
        run.q = q_.row(token) + key, run.q_stride = q_.stride;
        run.k = k_.row(token) + key, run.k_stride = k_.stride;
        run.v = v_.row(token) + head * values_, run.v_stride = v_.stride;
        run.alpha = alpha_.row(token) + head * decays_, run.alpha_stride = alpha_.stride;
        run.beta = beta_.row(token) + head, run.beta_stride = beta_.stride;
        run.out = out_ + (token * heads_ + head) * values_, run.out_stride = heads_ * values_;
        run.keys = keys_, run.values = values_, run.count = count;
        run.a = -std::exp(a_log_[head]), run.dt_bias = dt_bias_ + head * decays_, run.eps = eps_;
        kernel_(run, unit, scratch);
      };
      state_.for_each_run(step, static_cast<int32_t>(tile % step.rows), head, update);
    }
  }

 private:
  int64_t key_head(int64_t head) const {
    return in_turn_ ? head % key_heads_ : head / (heads_ / key_heads_);
  }

  int64_t heads_, key_heads_;
  bool in_turn_;
  int64_t keys_, decays_, values_;
  Rows q_, k_, v_, alpha_, beta_;
  const float *a_log_, *dt_bias_;
  float* out_;
  float eps_;
  decltype(&generic::gated_delta_run) kernel_;
};

class Wkv7 final : public StateOp {
 public:
  explicit Wkv7(const Args& a)
      : StateOp(StateCache(a, a.size("heads"), delta_unit(a.size("size"), a.size("size")))),
        heads_(a.size("heads")), size_(a.size("size")), r_(rows(a, "r")), w_(rows(a, "w")),
        k_(rows(a, "k")), v_(rows(a, "v")), a_(rows(a, "a")), first_(rows(a, "first", true)),
        mix_(rows(a, "mix", true)), k_k_(a.ptr<float>("k_k")), k_a_(a.ptr<float>("k_a")),
        r_k_(a.ptr<float>("r_k")), weight_(a.ptr<float>("weight")), bias_(a.ptr<float>("bias")),
        out_(a.ptr<float>("out")), eps_(a.f("eps")), kernel_(GALLEY_PICK(wkv7_run)) {}

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    float* scratch = thread_scratch(delta_scratch(size_));
    const bool mixes = first_ && mix_;
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t head = tile / step.rows, column = head * size_;
      const auto update = [&](float* unit, int64_t token, int64_t count) {
        Wkv7Run run{};
        run.r = r_.row(token) + column, run.r_stride = r_.stride;
        run.w = w_.row(token) + column, run.w_stride = w_.stride;
        run.k = k_.row(token) + column, run.k_stride = k_.stride;
        run.v = v_.row(token) + column, run.v_stride = v_.stride;
        run.a = a_.row(token) + column, run.a_stride = a_.stride;
        run.first = mixes ? first_.row(token) + column : nullptr, run.first_stride = first_.stride;
        run.mix = mixes ? mix_.row(token) + column : nullptr, run.mix_stride = mix_.stride;
        run.out = out_ + token * heads_ * size_ + column, run.out_stride = heads_ * size_;
        run.size = size_, run.count = count, run.eps = eps_;
        run.k_k = k_k_ + column, run.k_a = k_a_ + column, run.r_k = r_k_ + column;
        run.weight = weight_ + column, run.bias = bias_ + column;
        kernel_(run, unit, scratch);
      };
      state_.for_each_run(step, static_cast<int32_t>(tile % step.rows), head, update);
    }
  }

 private:
  Rows rows(const Args& a, const char* name, bool optional = false) const {
    return rows_argument(a, name, heads_ * size_, optional);
  }

  int64_t heads_, size_;
  Rows r_, w_, k_, v_, a_, first_, mix_;
  const float *k_k_, *k_a_, *r_k_, *weight_, *bias_;
  float* out_;
  float eps_;
  decltype(&generic::wkv7_run) kernel_;
};

GALLEY_OP(gated_delta_rule, GatedDeltaRule);
GALLEY_OP(wkv7, Wkv7);

}  // namespace
}  // namespace galley
