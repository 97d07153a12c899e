// Definitions for delta_rule.h; compiled once per instruction set (variants.h). Lanes are values, so
// no sum over keys runs over lanes: key j is added to accumulator j % 4.
#pragma once
#include "delta_rule.h"
#include "softplus_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

GALLEY_INLINE void delta_step(const DeltaStep& step, int64_t keys, int64_t values, float* state) {
  const int64_t padded = (values + kLanes - 1) / kLanes * kLanes;
  for (int64_t v = 0; v < values; v += kLanes) {
    const int lanes = values - v < kLanes ? static_cast<int>(values - v) : kLanes;
    float* s = state + v;
    Float sum[4] = {zero(), zero(), zero(), zero()};
    int64_t j = 0;
    for (; j + 4 <= keys; j += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        sum[i] = fma(all(step.read[j + i]), load(s + (j + i) * padded), sum[i]);
      }
    }
    for (int i = 0; j < keys; j++, i++) {
      sum[i] = fma(all(step.read[j]), load(s + j * padded), sum[i]);
    }
    const Float held = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    const Float value = load_part(step.value + v, lanes) * all(step.value_scale);
    Float y[4] = {zero(), zero(), zero(), zero()};
    for (j = 0; j + 4 <= keys; j += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        float* at = s + (j + i) * padded;
        Float next = load(at) * all(step.decay[j + i]);
        next = fma(all(step.write[j + i]), value, next);
        next = fma(all(step.correct[j + i]), held, next);
        store(at, next);
        y[i] = fma(all(step.query[j + i]), next, y[i]);
      }
    }
    for (int i = 0; j < keys; j++, i++) {
      float* at = s + j * padded;
      Float next = load(at) * all(step.decay[j]);
      next = fma(all(step.write[j]), value, next);
      next = fma(all(step.correct[j]), held, next);
      store(at, next);
      y[i] = fma(all(step.query[j]), next, y[i]);
    }
    store_part(step.y + v, (y[0] + y[1]) + (y[2] + y[3]), lanes);
  }
}

// out = x * scale / sqrt(sum of squares + eps)
GALLEY_INLINE void unit_vector(const float* x, int64_t n, float eps, float scale, float* out) {
  Float sum_of = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const Float v = load_part(x + i, n - i < kLanes ? static_cast<int>(n - i) : kLanes);
    sum_of = fma(v, v, sum_of);
  }
  const Float factor = all(scale / __builtin_sqrtf(sum(sum_of) + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    store(out + i, load_part(x + i, n - i < kLanes ? static_cast<int>(n - i) : kLanes) * factor);
  }
}

void gated_delta_run(const GatedDeltaRun& run, float* state, float* scratch) {
  const int64_t n = (run.keys + kLanes - 1) / kLanes * kLanes;
  float *query = scratch, *key = query + n, *read = key + n, *decay = read + n, *minus = decay + n;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(run.keys));
  for (int64_t t = 0; t < run.count; t++) {
    const float g = exp_one(run.a * softplus_one(run.alpha[t * run.alpha_stride] + run.dt_bias));
    const float beta = 1.0f / (1.0f + exp_one(-run.beta[t * run.beta_stride]));
    unit_vector(run.q + t * run.q_stride, run.keys, run.eps, scale, query);
    unit_vector(run.k + t * run.k_stride, run.keys, run.eps, 1.0f, key);
    for (int64_t i = 0; i < n; i += kLanes) {
      const Float k = load(key + i);
      store(read + i, k * all(g));
      store(minus + i, k * all(-beta));
      store(decay + i, all(g));
    }
    const DeltaStep step{read,  decay, key, minus, query, run.v + t * run.v_stride,
                         beta, run.out + t * run.out_stride};
    delta_step(step, run.keys, run.values, state);
  }
}

GALLEY_INLINE Float sigmoid(const Float& x) {
  return all(1.0f) / (all(1.0f) + exp(zero() - x));
}

void wkv7_run(const Wkv7Run& run, float* state, float* scratch) {
  const int64_t size = run.size, n = (size + kLanes - 1) / kLanes * kLanes;
  float *read = scratch, *decay = read + n, *write = decay + n, *correct = write + n;
  float *value = correct + n, *y = value + n;
  for (int64_t t = 0; t < run.count; t++) {
    const float* r = run.r + t * run.r_stride;
    Float length = zero(), bonus = zero();
    for (int64_t i = 0; i < size; i += kLanes) {
      const int part = size - i < kLanes ? static_cast<int>(size - i) : kLanes;
      const Float k = load_part(run.k + t * run.k_stride + i, part);
      const Float a = sigmoid(load_part(run.a + t * run.a_stride + i, part));
      const Float key = k * load_part(run.k_k + i, part);
      length = fma(key, key, length);
      store(read + i, key);
      store(correct + i, a);
      const Float change = (a - all(1.0f)) * load_part(run.k_a + i, part);
      const Float written = fma(k, change, k);
      store(write + i, written);
      const Float w = sigmoid(load_part(run.w + t * run.w_stride + i, part));
      store(decay + i, exp(w * all(-0.60653066f)));  // -exp(-0.5)
      bonus = fma(load_part(r + i, part) * written, load_part(run.r_k + i, part), bonus);
      Float v = load_part(run.v + t * run.v_stride + i, part);
      if (run.first) {
        const Float first = load_part(run.first + t * run.first_stride + i, part);
        v = fma(first - v, sigmoid(load_part(run.mix + t * run.mix_stride + i, part)), v);
      }
      store(value + i, v);
    }
    const float norm = __builtin_sqrtf(sum(length));
    const Float inverse = all(1.0f / (norm > 1e-12f ? norm : 1e-12f));
    for (int64_t i = 0; i < size; i += kLanes) {
      const Float key = load(read + i) * inverse;
      store(read + i, zero() - key);
      store(correct + i, key * load(correct + i));
    }
    delta_step({read, decay, write, correct, r, value, 1.0f, y}, size, size, state);
    Float total = zero();
    for (int64_t i = 0; i < size; i += kLanes) {
      total = total + load_part(y + i, size - i < kLanes ? static_cast<int>(size - i) : kLanes);
    }
    const float mean = sum(total) / static_cast<float>(size);
    Float squares = zero();
    for (int64_t i = 0; i < size; i += kLanes) {
      const int part = size - i < kLanes ? static_cast<int>(size - i) : kLanes;
      float centred[kLanes] = {};
      store_part(centred, load_part(y + i, part) - all(mean), part);
      const Float c = load(centred);
      squares = fma(c, c, squares);
    }
    const float variance = sum(squares) / static_cast<float>(size);
    const Float scale = all(1.0f / __builtin_sqrtf(variance + run.eps));
    const Float share = all(sum(bonus));
    for (int64_t i = 0; i < size; i += kLanes) {
      const int part = size - i < kLanes ? static_cast<int>(size - i) : kLanes;
      const Float normed = (load_part(y + i, part) - all(mean)) * scale;
      const Float out = fma(normed, load_part(run.weight + i, part), load_part(run.bias + i, part));
      store_part(run.out + t * run.out_stride + i, fma(share, load(value + i), out), part);
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
