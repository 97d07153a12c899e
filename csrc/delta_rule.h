// Recurrences of one head whose state is corrected by what it holds under a key.
#pragma once
#include "variants.h"

namespace galley {

// One token of a head, as all of these recurrences are computed. S is [keys][values]:
//   m = sum over j, in a fixed order, of read[j] * S[j]
//   S[j] = decay[j] * S[j] + write[j] * (value_scale * value) + correct[j] * m
//   y = sum over j, in a fixed order, of query[j] * S[j]
struct DeltaStep {
  const float *read, *decay, *write, *correct, *query;  // [keys]
  const float* value;                                   // [values]
  float value_scale;
  float* y;  // [values]
};

// Gated delta rule; q, k of unit length before the scale.
struct GatedDeltaRun {
  const float *q, *k, *v, *alpha, *beta;  // first token; alpha, beta: one number each
  float* out;
  int64_t q_stride, k_stride, v_stride, alpha_stride, beta_stride, out_stride;
  int64_t keys, values, count;
  float a, dt_bias, eps;  // decay = exp(a * softplus(alpha + dt_bias))
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
constexpr int64_t delta_scratch(int64_t keys) { return 6 * ((keys + 15) / 16 * 16); }

GALLEY_VARIANTS(
    // `state`: [keys][values, padded to 16], updated.
    void gated_delta_run(const GatedDeltaRun& run, float* state, float* scratch);
    void wkv7_run(const Wkv7Run& run, float* state, float* scratch);)

}  // namespace galley
