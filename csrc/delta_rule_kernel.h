// Definitions for delta_rule.h; compiled once per instruction set (variants.h).
//
// Lanes are values, so no sum over keys runs over lanes; keys are added in order. A panel of the state
// is updated by all tokens of a block before the next panel. One pass over it writes a token, makes
// its y, and reads what the next token finds under its key: each number is loaded and stored once.
#pragma once
#include "delta_rule.h"
#include "softplus_lanes.h"
#include "state_scale.h"

namespace galley {
namespace GALLEY_VARIANT {

// Values of a panel of the state, [keys][kDeltaPanel]; behind the last whole one, panels of 16. With 128
// keys, a panel and what a block of tokens does lie in the L1 cache.
constexpr int64_t kDeltaPanel = 32;

GALLEY_INLINE int lanes_of(int64_t left) { return left < kLanes ? static_cast<int>(left) : kLanes; }

// What the tokens of a block do (delta_rule.h), rows of `stride` floats.
struct DeltaTokens {
  float *read, *write, *correct, *query;  // [kDeltaTokens][stride]; `correct` may be null
  float* fold;                            // [kDeltaTokens][stride], where `folds` says so
  bool folds[kDeltaTokens];
  int64_t stride, keys, count;

  DeltaTokens(float* scratch, int64_t keys, bool corrects)
      : stride((keys + kLanes - 1) / kLanes * kLanes), keys(keys), count(0) {
    const int64_t size = kDeltaTokens * stride;
    read = scratch, write = read + size, query = write + size, fold = query + size;
    correct = corrects ? fold + size : nullptr;
  }
};

template <int wide>
GALLEY_INLINE void read_panel(const float* s, const float* read, int64_t keys, Float (&held)[wide]) {
#pragma GCC unroll 4
  for (int v = 0; v < wide; v++) held[v] = zero();
  for (int64_t j = 0; j < keys; j++, s += wide * kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) held[v] = fma(all(read[j]), load(s + v * kLanes), held[v]);
  }
}

// Writes token t and reads for the next one: `held` is what the token found, then what the next one does.
template <int wide, bool kCorrect, bool kFold>
GALLEY_INLINE void update_panel(float* s, const DeltaTokens& d, int64_t t, const float* next,
                                const Float (&value)[wide], Float (&held)[wide], Float (&y)[wide]) {
  const float *write = d.write + t * d.stride, *query = d.query + t * d.stride;
  const float *correct = kCorrect ? d.correct + t * d.stride : nullptr, *fold = d.fold + t * d.stride;
  Float found[wide];
#pragma GCC unroll 4
  for (int v = 0; v < wide; v++) found[v] = zero(), y[v] = zero();
  for (int64_t j = 0; j < d.keys; j++, s += wide * kLanes) {
    const Float in = all(write[j]), to = all(query[j]), look = all(next[j]);
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) {
      Float now = load(s + v * kLanes);
      if (kFold) now = now * all(fold[j]);
      now = fma(in, value[v], now);
      if (kCorrect) now = fma(all(correct[j]), held[v], now);
      store(s + v * kLanes, now);
      y[v] = fma(to, now, y[v]);
      found[v] = fma(look, now, found[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < wide; v++) held[v] = found[v];
}

// `left` values of the panel exist.
template <int wide, bool kCorrect>
GALLEY_INLINE void delta_panel(float* s, const DeltaTokens& d, const float* values,
                               int64_t value_stride, float* out, int64_t out_stride, int64_t left) {
  Float held[wide], value[wide], y[wide];
  read_panel<wide>(s, d.read, d.keys, held);
  for (int64_t t = 0; t < d.count; t++) {
    for (int v = 0; v < wide; v++) {
      __builtin_prefetch(values + (t + kDeltaTokens) * value_stride + v * kLanes);
      value[v] = load_part(values + t * value_stride + v * kLanes, lanes_of(left - v * kLanes));
      if (!kCorrect) value[v] = value[v] - held[v];
    }
    const float* next = d.read + (t + 1 < d.count ? t + 1 : t) * d.stride;
    if (d.folds[t]) {
      update_panel<wide, kCorrect, true>(s, d, t, next, value, held, y);
    } else {
      update_panel<wide, kCorrect, false>(s, d, t, next, value, held, y);
    }
    for (int v = 0; v < wide; v++) {
      store_part(out + t * out_stride + v * kLanes, y[v], lanes_of(left - v * kLanes));
    }
  }
}

template <bool kCorrect>
GALLEY_INLINE void delta_tokens(float* state, const DeltaTokens& d, const float* values,
                                int64_t value_stride, int64_t size, float* out,
                                int64_t out_stride) {
  int64_t v = 0;
  for (; v + kDeltaPanel <= size; v += kDeltaPanel) {
    delta_panel<kDeltaPanel / kLanes, kCorrect>(state + v * d.keys, d, values + v, value_stride,
                                                out + v, out_stride, kDeltaPanel);
  }
  for (; v < size; v += kLanes) {
    delta_panel<1, kCorrect>(state + v * d.keys, d, values + v, value_stride, out + v, out_stride,
                             size - v);
  }
}

// scale / sqrt(sum of squares + eps)
GALLEY_INLINE float unit_factor(const float* x, int64_t n, float eps) {
  Float squares = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const Float v = load_part(x + i, lanes_of(n - i));
    squares = fma(v, v, squares);
  }
  return 1.0f / __builtin_sqrtf(sum(squares) + eps);
}

GALLEY_INLINE Float sigmoid(const Float& x) {
  return all(1.0f) / (all(1.0f) + exp(zero() - x));
}

// Of the tokens' numbers alpha and beta: decays, and rates of change.
GALLEY_INLINE void delta_rates(const GatedDeltaRun& run, int64_t start, int64_t count, float* decay,
                               float* rate) {
  static_assert(kDeltaTokens <= kLanes, "");
  for (int64_t t = 0; t < kLanes; t++) {
    decay[t] = t < count ? run.alpha[(start + t) * run.alpha_stride] : 0.0f;
    rate[t] = t < count ? run.beta[(start + t) * run.beta_stride] : 0.0f;
  }
  store(decay, exp(all(run.a) * softplus(load(decay) + all(*run.dt_bias))));
  store(rate, sigmoid(load(rate)));
}

void gated_delta_run(const GatedDeltaRun& run, float* state, float* scratch) {
  const int64_t padded = (run.values + kLanes - 1) / kLanes * kLanes;
  DeltaTokens d(scratch, run.keys, false);
  StateScale scale(state + run.keys * padded);
  const float root = 1.0f / __builtin_sqrtf(static_cast<float>(run.keys));
  alignas(64) float decay[kLanes], rate[kLanes];
  for (int64_t start = 0; start < run.count; start += kDeltaTokens) {
    d.count = run.count - start < kDeltaTokens ? run.count - start : kDeltaTokens;
    delta_rates(run, start, d.count, decay, rate);
    for (int64_t t = 0; t < d.count; t++) {
      const float* q = run.q + (start + t) * run.q_stride;
      const float* k = run.k + (start + t) * run.k_stride;
      const float held = scale.value * decay[t], fold = scale.decay(decay[t]);
      const float of_q = unit_factor(q, run.keys, run.eps) * root * scale.value;
      const float of_k = unit_factor(k, run.keys, run.eps);
      d.folds[t] = fold != 1.0f;
      for (int64_t i = 0; i < run.keys; i += kLanes) {
        const int64_t at = t * d.stride + i;
        const Float key = load_part(k + i, lanes_of(run.keys - i)) * all(of_k);
        store(d.read + at, key * all(held));
        store(d.write + at, key * all(rate[t] / scale.value));
        store(d.query + at, load_part(q + i, lanes_of(run.keys - i)) * all(of_q));
        if (d.folds[t]) store(d.fold + at, all(fold));
        __builtin_prefetch(q + kDeltaTokens * run.q_stride + i);  // of the next block
        __builtin_prefetch(k + kDeltaTokens * run.k_stride + i);
      }
    }
    delta_tokens<false>(state, d, run.v + start * run.v_stride, run.v_stride, run.values,
                        run.out + start * run.out_stride, run.out_stride);
  }
  scale.keep();
}

// The products of scale and decay of each key, in d.fold; returns whether one is too small to be kept.
GALLEY_INLINE bool keyed_decays(const GatedDeltaRun& run, int64_t token, const float* scale,
                                float* product) {
  Float smallest = all(1.0f);
  for (int64_t i = 0; i < run.keys; i += kLanes) {
    const int part = lanes_of(run.keys - i);
    const Float alpha = load_part(run.alpha + token * run.alpha_stride + i, part);
    const Float decay = exp(all(run.a) * softplus(alpha + load_part(run.dt_bias + i, part)));
    const Float next = load(scale + i) * decay;
    store(product + i, next);
    smallest = min(select(lane_numbers() < all(part), next, all(1.0f)), smallest);
  }
  return !(-max_lane(zero() - smallest) >= kSmallestScale);
}

void keyed_delta_run(const GatedDeltaRun& run, float* state, float* scratch) {
  DeltaTokens d(scratch, run.keys, false);
  float* scale = state + run.keys * ((run.values + 15) / 16 * 16);
  if (*scale == 0.0f) {
    for (int64_t i = 0; i < d.stride; i += kLanes) store(scale + i, all(1.0f));
  }
  const float root = 1.0f / __builtin_sqrtf(static_cast<float>(run.keys));
  for (int64_t start = 0; start < run.count; start += kDeltaTokens) {
    d.count = run.count - start < kDeltaTokens ? run.count - start : kDeltaTokens;
    for (int64_t t = 0; t < d.count; t++) {
      const int64_t token = start + t;
      const float* q = run.q + token * run.q_stride;
      const float* k = run.k + token * run.k_stride;
      float* product = d.fold + t * d.stride;
      d.folds[t] = keyed_decays(run, token, scale, product);
      const Float of_q = all(unit_factor(q, run.keys, run.eps) * root);
      const Float of_k = all(unit_factor(k, run.keys, run.eps));
      const Float rate = sigmoid(all(run.beta[token * run.beta_stride]));
      for (int64_t i = 0; i < run.keys; i += kLanes) {
        const int64_t at = t * d.stride + i;
        const Float next = d.folds[t] ? all(1.0f) : load(product + i);
        const Float key = load_part(k + i, lanes_of(run.keys - i)) * of_k;
        store(d.read + at, key * load(product + i));
        store(d.write + at, key * rate / next);
        store(d.query + at, load_part(q + i, lanes_of(run.keys - i)) * of_q * next);
        store(scale + i, next);
      }
    }
    delta_tokens<false>(state, d, run.v + start * run.v_stride, run.v_stride, run.values,
                        run.out + start * run.out_stride, run.out_stride);
  }
}

// What a token of RWKV-7 does, and its v'; returns the factor of v' that is added to its result.
GALLEY_INLINE float wkv7_token(const Wkv7Run& run, int64_t token, int64_t t, float* scale,
                               DeltaTokens& d, float* value) {
  const int64_t size = run.size, row = t * d.stride;
  Float length = zero(), bonus = zero(), smallest = all(1.0f);
  for (int64_t i = 0; i < size; i += kLanes) {
    const int part = lanes_of(size - i);
    const Float k = load_part(run.k + token * run.k_stride + i, part);
    const Float a = sigmoid(load_part(run.a + token * run.a_stride + i, part));
    const Float key = k * load_part(run.k_k + i, part);
    length = fma(key, key, length);
    store(d.read + row + i, key);
    store(d.correct + row + i, a);
    const Float written = fma(k, (a - all(1.0f)) * load_part(run.k_a + i, part), k);
    store(d.write + row + i, written);
    const Float w = sigmoid(load_part(run.w + token * run.w_stride + i, part));
    const Float decay = exp(w * all(-0.60653066f));  // -exp(-0.5)
    const Float next = load(scale + i) * decay;
    store(d.fold + row + i, next);
    smallest = min(select(lane_numbers() < all(part), next, all(1.0f)), smallest);
    const Float r = load_part(run.r + token * run.r_stride + i, part);
    bonus = fma(r * written, load_part(run.r_k + i, part), bonus);
    Float v = load_part(run.v + token * run.v_stride + i, part);
    if (run.first) {
      const Float first = load_part(run.first + token * run.first_stride + i, part);
      v = fma(first - v, sigmoid(load_part(run.mix + token * run.mix_stride + i, part)), v);
    }
    store(value + i, v);
  }
  d.folds[t] = !(-max_lane(zero() - smallest) >= kSmallestScale);
  const float norm = __builtin_sqrtf(sum(length));
  const Float inverse = all(1.0f / (norm > 1e-12f ? norm : 1e-12f));
  for (int64_t i = 0; i < size; i += kLanes) {
    const Float key = load(d.read + row + i) * inverse;
    const Float next = d.folds[t] ? all(1.0f) : load(d.fold + row + i);
    const Float by = all(1.0f) / next;
    store(d.read + row + i, (zero() - key) * load(scale + i));
    store(d.correct + row + i, key * load(d.correct + row + i) * by);
    store(d.write + row + i, load(d.write + row + i) * by);
    store(d.query + row + i,
          load_part(run.r + token * run.r_stride + i, lanes_of(size - i)) * next);
    store(scale + i, next);
  }
  return sum(bonus);
}

// out = norm(y) * weight + bias + bonus * value
GALLEY_INLINE void wkv7_result(const Wkv7Run& run, const float* y, const float* value, float bonus,
                               float* out) {
  const int64_t size = run.size;
  Float total = zero(), squares = zero();
  for (int64_t i = 0; i < size; i += kLanes) {
    total = total + load_part(y + i, lanes_of(size - i));
  }
  const float mean = sum(total) / static_cast<float>(size);
  for (int64_t i = 0; i < size; i += kLanes) {
    const int part = lanes_of(size - i);
    const Float centred = load_part(y + i, part) - all(mean);
    const Float c = select(lane_numbers() < all(part), centred, zero());
    squares = fma(c, c, squares);
  }
  const float variance = sum(squares) / static_cast<float>(size);
  const Float scale = all(1.0f / __builtin_sqrtf(variance + run.eps));
  for (int64_t i = 0; i < size; i += kLanes) {
    const int part = lanes_of(size - i);
    const Float normed = (load_part(y + i, part) - all(mean)) * scale;
    const Float sum = fma(normed, load_part(run.weight + i, part), load_part(run.bias + i, part));
    store_part(out + i, fma(all(bonus), load(value + i), sum), part);
  }
}

void wkv7_run(const Wkv7Run& run, float* state, float* scratch) {
  DeltaTokens d(scratch, run.size, true);
  const int64_t n = d.stride;
  float *value = d.correct + kDeltaTokens * n, *y = value + kDeltaTokens * n;
  float* scale = state + run.size * n;
  if (*scale == 0.0f) {
    for (int64_t i = 0; i < n; i += kLanes) store(scale + i, all(1.0f));
  }
  float bonus[kDeltaTokens];
  for (int64_t start = 0; start < run.count; start += kDeltaTokens) {
    d.count = run.count - start < kDeltaTokens ? run.count - start : kDeltaTokens;
    for (int64_t t = 0; t < d.count; t++) {
      bonus[t] = wkv7_token(run, start + t, t, scale, d, value + t * n);
    }
    delta_tokens<true>(state, d, value, n, run.size, y, n);
    for (int64_t t = 0; t < d.count; t++) {
      wkv7_result(run, y + t * n, value + t * n, bonus[t],
                  run.out + (start + t) * run.out_stride);
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
