// Definitions for delta_rule.h; compiled once per instruction set (variants.h).
//
// A group is the tokens until a head has all its terms. For all tokens of a group what depends on keys alone is
// computed first; then Q is read, each token takes account of the terms before it, and a full group is added
// to Q. Numbers of Q and sums over its keys have values in their lanes and are added in order; products of a
// term and a key add their lanes at the end.
#pragma once
#include "delta_rule.h"
#include "softplus_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

// Registers of values, and sums over keys for each of them, that are computed at a time.
#if GALLEY_PARTS == 1
constexpr int kDeltaWide = 2;
constexpr int kDeltaRows = 8;
#else
constexpr int kDeltaWide = 1;
constexpr int kDeltaRows = 4;
#endif

GALLEY_INLINE int lanes_of(int64_t left) { return left < kLanes ? static_cast<int>(left) : kLanes; }

// The sum of the lanes of each, by `sum`.
GALLEY_INLINE void sums(const Float (&x)[4], float* to) {
  for (int i = 0; i < 4; i++) to[i] = sum(x[i]);
}

GALLEY_INLINE void prefetch(const float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) __builtin_prefetch(x + i);
}

// What is kept of a head (delta_rule.h).
struct DeltaHead {
  float *numbers, *decay, *count, *write, *value;
  int64_t keys, stride, width, terms;  // stride: of `write`; width: of `value`

  DeltaHead(float* unit, int64_t keys, int64_t values)
      : keys(keys), stride(delta_padded(keys)), width(delta_padded(values)) {
    numbers = unit, decay = numbers + keys * width, count = decay + stride;
    write = count + 16, value = write + kDeltaTerms * stride;
    terms = static_cast<int64_t>(*count);
    if (terms == 0) clear();
  }
  GALLEY_INLINE void clear() {
    terms = 0;
    for (int64_t i = 0; i < stride; i += kLanes) store(decay + i, all(1.0f));
  }
  GALLEY_INLINE void add(const float* key) {
    for (int64_t i = 0; i < stride; i += kLanes) store(write + terms * stride + i, load(key + i));
    terms++;
  }
  GALLEY_INLINE void keep() { *count = static_cast<float>(terms); }
};

// Tokens of a group: what they find in Q, with the vectors of `rows`, and in the terms before them.
struct DeltaGroup {
  float* rows;  // [2 * kDeltaTerms][stride]: of each token what it reads before its terms, and after
  float* sums;  // [2 * kDeltaTerms][width]: their products with Q
  float before[kDeltaTerms][kDeltaTerms], after[kDeltaTerms][kDeltaTerms];
  alignas(64) float rate[kLanes];
  int64_t first, count;  // terms before the group's tokens; tokens
};

// Whether a token's decays act before it looks at the state, afterwards or not at all.
enum class Decay { first, last, none };

// A vector with which a token looks at the state: its row for Q, and its products with the terms, four at a
// time. `by` are the decays.
template <Decay when>
GALLEY_INLINE void look(const DeltaHead& head, const float* x, const float* by, float* row,
                        float* products) {
  for (int64_t i = 0; i < head.stride; i += kLanes) {
    Float decay = load(head.decay + i);
    if (when == Decay::first) decay = decay * load(by + i);
    store(row + i, load(x + i) * decay);
    if (when == Decay::last) decay = decay * load(by + i);
    if (when != Decay::none) store(head.decay + i, decay);
  }
  for (int64_t s = 0; s < head.terms; s += 4) {
    float* write = head.write + s * head.stride;
    Float total[4];
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) total[u] = zero();
    for (int64_t i = 0; i < head.stride; i += kLanes) {
      const Float in = load(x + i);
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++) {
        Float key = load(write + u * head.stride + i);
        if (when == Decay::first) key = key * load(by + i);
        total[u] = fma(key, in, total[u]);
        if (when == Decay::last) key = key * load(by + i);
        if (when != Decay::none) store(write + u * head.stride + i, key);
      }
    }
    sums(total, products + s);
  }
}

// sums[r][v] = sum over keys, in order, of rows[r] * Q.
template <int rows, int wide>
GALLEY_INLINE void read_numbers(const float* q, int64_t pitch, const DeltaHead& head,
                                const float* from, float* sums, int64_t sums_stride) {
  Float total[rows][wide];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) total[r][v] = zero();
  }
  for (int64_t j = 0; j < head.keys; j++, q += pitch) {
    Float number[wide];
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) number[v] = load(q + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      const Float by = all(from[r * head.stride + j]);
#pragma GCC unroll 4
      for (int v = 0; v < wide; v++) total[r][v] = fma(by, number[v], total[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) store(sums + r * sums_stride + v * kLanes, total[r][v]);
  }
}

// The rows of a group's tokens, for 16 * wide values.
template <int wide>
GALLEY_INLINE void read_rows(const float* q, int64_t pitch, const DeltaHead& head,
                             const DeltaGroup& group, float* sums) {
  const int64_t rows = 2 * group.count;
  int64_t r = 0;
  for (; r + kDeltaRows <= rows; r += kDeltaRows) {
    read_numbers<kDeltaRows, wide>(q, pitch, head, group.rows + r * head.stride,
                                   sums + r * head.width, head.width);
  }
  for (; r < rows; r += 2) {
    read_numbers<2, wide>(q, pitch, head, group.rows + r * head.stride, sums + r * head.width,
                          head.width);
  }
}

// Q = decay * Q + write[i] * value[i] of all terms, for some keys.
template <int keys, int wide>
GALLEY_INLINE void add_keys(float* q, int64_t pitch, const DeltaHead& head, int64_t j,
                            const Float (&value)[kDeltaTerms][wide]) {
  Float number[keys][wide];
#pragma GCC unroll 2
  for (int i = 0; i < keys; i++) {
    const Float decay = all(head.decay[j + i]);
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) number[i][v] = decay * load(q + i * pitch + v * kLanes);
  }
#pragma GCC unroll 8
  for (int s = 0; s < kDeltaTerms; s++) {
#pragma GCC unroll 2
    for (int i = 0; i < keys; i++) {
      const Float write = all(head.write[s * head.stride + j + i]);
#pragma GCC unroll 4
      for (int v = 0; v < wide; v++) number[i][v] = fma(write, value[s][v], number[i][v]);
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < keys; i++) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) store(q + i * pitch + v * kLanes, number[i][v]);
  }
}

// The same for all keys.
template <int wide>
GALLEY_INLINE void add_terms(float* q, int64_t pitch, const DeltaHead& head, const float* values) {
  Float value[kDeltaTerms][wide];
#pragma GCC unroll 8
  for (int s = 0; s < kDeltaTerms; s++) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) value[s][v] = load(values + s * head.width + v * kLanes);
  }
  int64_t j = 0;
  for (; j + 2 <= head.keys; j += 2, q += 2 * pitch) add_keys<2, wide>(q, pitch, head, j, value);
  for (; j < head.keys; j++, q += pitch) add_keys<1, wide>(q, pitch, head, j, value);
}

// Calls columns(q, pitch, column) for kDeltaWide registers of values of Q at a time, or for one.
template <class Wide, class One>
GALLEY_INLINE void for_each_column(const DeltaHead& head, const Wide& wide, const One& one) {
  int64_t column = 0;
  for (; column + kDeltaPanel <= head.width; column += kDeltaPanel) {
    for (int64_t v = 0; v < kDeltaPanel; v += kDeltaWide * kLanes) {
      wide(head.numbers + column * head.keys + v, kDeltaPanel, column + v);
    }
  }
  for (; column < head.width; column += kLanes) {
    one(head.numbers + column * head.keys, kLanes, column);
  }
}

// The values of the group's terms and the results of its tokens, for 16 * wide values. `left` of them exist,
// `given` is what the tokens write. `kCorrect`: a token has two terms, of what it writes and of what it found.
template <int wide, bool kCorrect>
GALLEY_INLINE void solve(const DeltaHead& head, const DeltaGroup& group, int64_t first,
                         int64_t count, int64_t column, const float* given, int64_t given_stride,
                         float* out, int64_t out_stride, int64_t left) {
  const float* sums = group.sums + column;
  float* terms = head.value + column;
  const int64_t width = head.width;
  int64_t n = first;
#pragma GCC unroll 8
  for (int64_t t = 0; t < count; t++) {
    Float held[wide];
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) held[v] = load(sums + 2 * t * width + v * kLanes);
#pragma GCC unroll 8
    for (int64_t s = 0; s < n; s++) {
      const Float before = all(group.before[t][s]);
#pragma GCC unroll 4
      for (int v = 0; v < wide; v++) {
        held[v] = fma(before, load(terms + s * width + v * kLanes), held[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) {
      const int part = lanes_of(left - v * kLanes);
      Float value = load_part(given + t * given_stride + v * kLanes, part);
      if (!kCorrect) value = (value - held[v]) * all(group.rate[t]);
      store(terms + n * width + v * kLanes, value);
      if (kCorrect) store(terms + (n + 1) * width + v * kLanes, held[v]);
    }
    n += kCorrect ? 2 : 1;
  }
  n = first;
#pragma GCC unroll 8
  for (int64_t t = 0; t < count; t++) {
    n += kCorrect ? 2 : 1;
    Float y[wide];
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) y[v] = load(sums + (2 * t + 1) * width + v * kLanes);
#pragma GCC unroll 8
    for (int64_t s = 0; s < n; s++) {
      const Float after = all(group.after[t][s]);
#pragma GCC unroll 4
      for (int v = 0; v < wide; v++) {
        y[v] = fma(after, load(terms + s * width + v * kLanes), y[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) {
      store_part(out + t * out_stride + v * kLanes, y[v], lanes_of(left - v * kLanes));
    }
  }
}

// The group's tokens, whose terms have been added to `head` but for their values.
template <bool kCorrect>
GALLEY_INLINE void delta_group(DeltaHead& head, const DeltaGroup& group, const float* given,
                               int64_t given_stride, int64_t size, float* out,
                               int64_t out_stride) {
  for_each_column(
      head,
      [&](const float* q, int64_t pitch, int64_t column) {
        read_rows<kDeltaWide>(q, pitch, head, group, group.sums + column);
      },
      [&](const float* q, int64_t pitch, int64_t column) {
        read_rows<1>(q, pitch, head, group, group.sums + column);
      });
  int64_t column = 0;
  constexpr int64_t kMost = kCorrect ? kDeltaTerms / 2 : kDeltaTerms;
  for (; group.count == kMost && column + 4 * kLanes <= size; column += 4 * kLanes) {
    solve<4, kCorrect>(head, group, 0, kMost, column, given + column, given_stride, out + column,
                       out_stride, size - column);
  }
  for (; column < size; column += kLanes) {
    solve<1, kCorrect>(head, group, group.first, group.count, column, given + column,
                       given_stride, out + column, out_stride, size - column);
  }
  if (head.terms < kDeltaTerms) return;
  for_each_column(
      head,
      [&](float* q, int64_t pitch, int64_t column) {
        add_terms<kDeltaWide>(q, pitch, head, head.value + column);
      },
      [&](float* q, int64_t pitch, int64_t column) {
        add_terms<1>(q, pitch, head, head.value + column);
      });
  head.clear();
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

// 1 / (1 + e^-x)
GALLEY_INLINE Float sigmoid(const Float& x) {
  const Float e = exp2_nonpositive(min(zero() - x, x) * all(1.44269504f)), to = all(1.0f) + e;
  const Float over = select(x < zero(), e, all(1.0f));
#if GALLEY_PARTS == 1
  // A step of Newton's method from 14 bits of 1 / to; a division takes 16 cycles.
  const Float near{{_mm512_rcp14_ps(to.part[0])}};
  return over * (near * (all(2.0f) - to * near));
#else
  return over / to;
#endif
}

// Of the tokens' numbers alpha and beta: decays, and rates of change.
struct GatedDecays {
  alignas(64) float decay[kLanes];

  GALLEY_INLINE void begin(const GatedDeltaRun& run, int64_t start, int64_t count) {
    for (int64_t t = 0; t < kLanes; t++) {
      decay[t] = t < count ? run.alpha[(start + t) * run.alpha_stride] : 0.0f;
    }
    store(decay, exp(all(run.a) * softplus(load(decay) + all(*run.dt_bias))));
  }
  GALLEY_INLINE void get(const GatedDeltaRun& run, int64_t, int64_t t, float* to) const {
    for (int64_t i = 0; i < run.keys; i += kLanes) store(to + i, all(decay[t]));
  }
};

// A decay of each key.
struct KeyedDecays {
  GALLEY_INLINE void begin(const GatedDeltaRun&, int64_t, int64_t) {}
  GALLEY_INLINE void get(const GatedDeltaRun& run, int64_t start, int64_t t, float* to) const {
    const float* from = run.alpha + (start + t) * run.alpha_stride;
    for (int64_t i = 0; i < run.keys; i += kLanes) {
      const int part = lanes_of(run.keys - i);
      const Float alpha = load_part(from + i, part) + load_part(run.dt_bias + i, part);
      store(to + i, exp2_nonpositive(all(1.44269504f * run.a) * softplus(alpha)));
    }
  }
};

template <class Decays>
GALLEY_INLINE void delta_run(const GatedDeltaRun& run, float* unit, float* scratch) {
  DeltaHead head(unit, run.keys, run.values);
  const float root = 1.0f / __builtin_sqrtf(static_cast<float>(run.keys));
  float *decay = scratch, *key = decay + head.stride, *query = key + head.stride;
  Decays decays;
  DeltaGroup group;
  group.rows = query + head.stride;
  group.sums = group.rows + 2 * kDeltaTerms * head.stride;
  for (int64_t start = 0; start < run.count; start += group.count) {
    const int64_t room = kDeltaTerms - head.terms;
    group.first = head.terms;
    group.count = run.count - start < room ? run.count - start : room;
    decays.begin(run, start, group.count);
    for (int64_t t = 0; t < kLanes; t++) {
      group.rate[t] = t < group.count ? run.beta[(start + t) * run.beta_stride] : 0.0f;
    }
    store(group.rate, sigmoid(load(group.rate)));
    for (int64_t t = 0; t < group.count; t++) {
      const float* q = run.q + (start + t) * run.q_stride;
      const float* k = run.k + (start + t) * run.k_stride;
      const Float of_q = all(unit_factor(q, run.keys, run.eps) * root);
      const Float of_k = all(unit_factor(k, run.keys, run.eps));
      for (int64_t i = 0; i < run.keys; i += kLanes) {
        store(query + i, load_part(q + i, lanes_of(run.keys - i)) * of_q);
        store(key + i, load_part(k + i, lanes_of(run.keys - i)) * of_k);
      }
      prefetch(q + kDeltaTerms * run.q_stride, run.keys);  // of the next group
      prefetch(k + kDeltaTerms * run.k_stride, run.keys);
      prefetch(run.v + (start + t + kDeltaTerms) * run.v_stride, run.values);
      decays.get(run, start, t, decay);
      float* rows = group.rows + 2 * t * head.stride;
      look<Decay::first>(head, key, decay, rows, group.before[t]);
      head.add(key);
      look<Decay::none>(head, query, nullptr, rows + head.stride, group.after[t]);
    }
    delta_group<false>(head, group, run.v + start * run.v_stride, run.v_stride, run.values,
                       run.out + start * run.out_stride, run.out_stride);
  }
  head.keep();
}

void gated_delta_run(const GatedDeltaRun& run, float* unit, float* scratch) {
  delta_run<GatedDecays>(run, unit, scratch);
}

void keyed_delta_run(const GatedDeltaRun& run, float* unit, float* scratch) {
  delta_run<KeyedDecays>(run, unit, scratch);
}

// Of a token of RWKV-7, [size] each. `key` is of unit length; the terms write `write` and `correct`.
struct Wkv7Token {
  float *key, *decay, *query, *write, *correct;
};

// The token's vectors, and its v'; returns the factor of v' that is added to its result.
GALLEY_INLINE float wkv7_token(const Wkv7Run& run, int64_t token, const Wkv7Token& to,
                               float* value) {
  const int64_t size = run.size;
  Float length = zero(), bonus = zero();
  for (int64_t i = 0; i < size; i += kLanes) {
    const int part = lanes_of(size - i);
    const auto of = [&](const float* x, int64_t stride) {
      __builtin_prefetch(x + (token + kDeltaTerms) * stride + i);
      return load_part(x + token * stride + i, part);
    };
    const Float k = of(run.k, run.k_stride);
    const Float a = sigmoid(of(run.a, run.a_stride));
    const Float key = k * load_part(run.k_k + i, part);
    length = fma(key, key, length);
    store(to.key + i, key);
    store(to.correct + i, zero() - a);
    const Float written = fma(k, (a - all(1.0f)) * load_part(run.k_a + i, part), k);
    store(to.write + i, written);
    const Float w = sigmoid(of(run.w, run.w_stride));
    store(to.decay + i, exp2_nonpositive(w * all(-0.87503877f)));  // -exp(-0.5) / ln 2
    const Float r = of(run.r, run.r_stride);
    store(to.query + i, r);
    bonus = fma(r * written, load_part(run.r_k + i, part), bonus);
    Float v = of(run.v, run.v_stride);
    if (run.first) {
      v = fma(of(run.first, run.first_stride) - v, sigmoid(of(run.mix, run.mix_stride)), v);
    }
    store(value + i, v);
  }
  const float norm = __builtin_sqrtf(sum(length));
  const Float inverse = all(1.0f / (norm > 1e-12f ? norm : 1e-12f));
  for (int64_t i = 0; i < size; i += kLanes) {
    const Float key = load(to.key + i) * inverse;
    store(to.key + i, key);
    store(to.correct + i, load(to.correct + i) * key);
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

void wkv7_run(const Wkv7Run& run, float* unit, float* scratch) {
  DeltaHead head(unit, run.size, run.size);
  const int64_t n = head.stride;
  const Wkv7Token token{scratch, scratch + n, scratch + 2 * n, scratch + 3 * n, scratch + 4 * n};
  float *values = scratch + 5 * n, *y = values + kDeltaTerms / 2 * n;
  DeltaGroup group;
  group.rows = y + kDeltaTerms / 2 * n;
  group.sums = group.rows + kDeltaTerms * n;
  float bonus[kDeltaTerms];
  for (int64_t start = 0; start < run.count; start += group.count) {
    const int64_t room = (kDeltaTerms - head.terms) / 2;
    group.first = head.terms;
    group.count = run.count - start < room ? run.count - start : room;
    for (int64_t t = 0; t < group.count; t++) {
      bonus[t] = wkv7_token(run, start + t, token, values + t * n);
      float* rows = group.rows + 2 * t * n;
      look<Decay::last>(head, token.key, token.decay, rows, group.before[t]);
      head.add(token.write);
      head.add(token.correct);
      look<Decay::none>(head, token.query, nullptr, rows + n, group.after[t]);
    }
    delta_group<true>(head, group, values, n, run.size, y, n);
    for (int64_t t = 0; t < group.count; t++) {
      wkv7_result(run, y + t * n, values + t * n, bonus[t],
                  run.out + (start + t) * run.out_stride);
    }
  }
  head.keep();
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
