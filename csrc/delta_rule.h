// Recurrences of one head whose state is corrected by what it holds under a key.
#pragma once
#include "variants.h"

namespace galley {

// The data of a head. Its state is S [keys][values] = diag(decay) Q + sum of scale[i] write[i] value[i]ᵀ
// over the terms i that tokens have added; decays of each key are in `write`, others in `scale`. With kDeltaTerms terms they are added to Q, in order, and none is left:
// Q is read for several tokens at a time, and written once for all of them. How many terms there are follows
// from the number of tokens alone, so no bit depends on how a prompt is cut.
constexpr int64_t kDeltaTerms = 8;
// Values of a panel of Q, [keys][kDeltaPanel]; behind the last whole one, panels of 16.
constexpr int64_t kDeltaPanel = 32;

constexpr int64_t delta_padded(int64_t n) { return (n + 15) / 16 * 16; }
// Floats: decay, the number of terms and their scales (of 16 floats), write, value, Q.
constexpr int64_t delta_unit(int64_t keys, int64_t values) {
  return (keys + kDeltaTerms) * delta_padded(values) + (1 + kDeltaTerms) * delta_padded(keys) + 16;
}

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

// Floats of scratch.
constexpr int64_t delta_scratch(int64_t keys) { return 4 * kDeltaTerms * delta_padded(keys); }

GALLEY_VARIANTS(
    // `unit`: what is kept of the head, updated; zeros at first.
    void gated_delta_run(const GatedDeltaRun& run, float* unit, float* scratch);
    // A decay of each key.
    void keyed_delta_run(const GatedDeltaRun& run, float* unit, float* scratch);
    void wkv7_run(const Wkv7Run& run, float* unit, float* scratch);)

}  // namespace galley
