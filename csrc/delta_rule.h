// Recurrences of one head whose state is corrected by what it holds under a key.
#pragma once
#include "variants.h"

namespace galley {

// One token of a head, as these recurrences are computed. S is [keys][values], Q is S without its scale
// (state_scale.h), of which `read`, `write`, `correct` and `query` take account:
//   m = sum over j, in order, of read[j] * Q[j]
//   Q[j] = fold[j] * Q[j] + write[j] * value + correct[j] * m     (without `correct`: value - m)
//   y = sum over j, in order, of query[j] * Q[j]

// Gated delta rule; q, k of unit length before the scale.
struct GatedDeltaRun {
  const float *q, *k, *v, *alpha, *beta;  // first token; beta, alpha: one number each, or alpha [keys]
  float* out;
  int64_t q_stride, k_stride, v_stride, alpha_stride, beta_stride, out_stride;
  int64_t keys, values, count;
  const float* dt_bias;  // one number, or [keys]
  float a, eps;          // decay = exp(a * softplus(alpha + dt_bias))
};

// RWKV-7 (delta_rule.cpp). Values are [count][size]; `first` and `mix` are null in the first layer.
struct Wkv7Run {
  const float *r, *w, *k, *v, *a, *first, *mix;
  float* out;
  int64_t r_stride, w_stride, k_stride, v_stride, a_stride, first_stride, mix_stride, out_stride;
  int64_t size, count;
  const float *k_k, *k_a, *r_k, *weight, *bias;  // [size]
  float eps;
};

// Tokens that are computed at a time.
constexpr int64_t kDeltaTokens = 8;
// Floats of scratch.
constexpr int64_t delta_scratch(int64_t keys) {
  return 7 * kDeltaTokens * ((keys + 15) / 16 * 16);
}

GALLEY_VARIANTS(
    // `state`: numbers by panel (delta_rule_kernel.h), then the scale of all or of each key; updated.
    void gated_delta_run(const GatedDeltaRun& run, float* state, float* scratch);
    // A decay of each key.
    void keyed_delta_run(const GatedDeltaRun& run, float* state, float* scratch);
    void wkv7_run(const Wkv7Run& run, float* state, float* scratch);)

}  // namespace galley
