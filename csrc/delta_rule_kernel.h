// Definitions for delta_rule.h; compiled once per instruction set (variants.h).
//
// A group is the tokens until a head has all its terms. For all tokens of a group what depends on keys alone is
// computed first. Then, for some values at a time, Q is read, each token takes account of the terms before it, and
// a full group is added to Q. Numbers of Q and sums over its keys have values in their lanes and are added in
// order; products of a term and a key add their lanes at the end.
#pragma once
#include "delta_rule.h"
#include "softplus_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

// Registers of values that are computed at a time; sums over keys, and keys, for each of them.
#if GALLEY_PARTS == 1
constexpr int kDeltaWide = 2;
constexpr int kDeltaRows = 8;
constexpr int kDeltaKeys = 4;
#else
constexpr int kDeltaWide = 1;
constexpr int kDeltaRows = 4;
constexpr int kDeltaKeys = 2;
#endif
// Floats that are fetched ahead of Q where a single token reads it: at its end, what the next head of the
// sequence begins with.
constexpr int64_t kDeltaAhead = 1792;

GALLEY_INLINE int lanes_of(int64_t left) { return left < kLanes ? static_cast<int>(left) : kLanes; }

// Inputs of the next group, fetched a line at a time while this one is computed: its rows lie pages apart.
struct Ahead {
  static constexpr int64_t kMost = 6 * kDeltaTerms;
  struct {
    const float *at, *end;
  } rows[kMost];
  int64_t row = 0, count = 0, pace;  // lines that are fetched at a time

  explicit Ahead(int64_t pace) : pace(pace) {}
  GALLEY_INLINE void clear() { row = count = 0; }
  GALLEY_INLINE void add(const float* x, int64_t n) { rows[count++] = {x, x + n}; }
  GALLEY_INLINE void step() {
    for (int64_t i = 0; i < pace && row < count; i++) {
      __builtin_prefetch(rows[row].at);
      rows[row].at += kLanes;
      if (rows[row].at >= rows[row].end) row++;
    }
  }
};

// The data of a head (delta_rule.h).
struct DeltaHead {
  float *numbers, *decay, *count, *write, *value;
  int64_t keys, stride, width, terms;  // stride: of `write`; width: of `value`
  alignas(64) float scale[2 * kDeltaTerms];  // of each term; twice

  DeltaHead(float* unit, int64_t keys, int64_t values)
      : keys(keys), stride(delta_padded(keys)), width(delta_padded(values)) {
    decay = unit, count = decay + stride, write = count + 16;
    value = write + kDeltaTerms * stride, numbers = value + kDeltaTerms * width;
    terms = static_cast<int64_t>(*count);
    for (int64_t s = 0; s < kDeltaTerms; s++) scale[s] = scale[kDeltaTerms + s] = count[1 + s];
    if (terms == 0) clear();
  }
  GALLEY_INLINE void clear() {
    terms = 0;
    for (int64_t i = 0; i < stride; i += kLanes) store(decay + i, all(1.0f));
    store(scale, all(1.0f));
  }
  // Where the next term is to be written.
  GALLEY_INLINE float* next() const { return write + terms * stride; }
  GALLEY_INLINE void add() {
    scale[terms] = scale[kDeltaTerms + terms] = 1.0f;
    terms++;
  }
  GALLEY_INLINE void keep() {
    *count = static_cast<float>(terms);
    memcpy(count + 1, scale, kDeltaTerms * sizeof(float));
  }
};

// Tokens of a group: what they find in Q, with the vectors of `rows`, and in the terms before them.
struct DeltaGroup {
  float* rows;  // [2 * kDeltaTerms][stride]: of each token what it reads before its terms, and after
  // Of each token its products with the terms, before its own and after.
  alignas(64) float products[kDeltaTerms][2 * kDeltaTerms];
  alignas(64) float rate[kLanes];
  int64_t first, count;  // terms before the group's tokens; tokens
  Ahead ahead;

  explicit DeltaGroup(int64_t pace) : ahead(pace) {}
};

// Whether the decay of a token is one for all keys, or acts before or after it looks at the state.
enum class Decay { uniform, before, after };

// Products of `terms` terms from number s on with key and query; `by` are the decays.
template <int terms, bool kDecays, Decay when>
GALLEY_INLINE void term_products(const DeltaHead& head, int64_t s, const float* key,
                                 const float* query, const float* by, Float* total) {
  Float first[terms], last[terms];
#pragma GCC unroll 4
  for (int u = 0; u < terms; u++) first[u] = last[u] = zero();
  float* write = head.write + s * head.stride;
  for (int64_t i = 0; i < head.stride; i += kLanes) {
    const Float k = load(key + i), q = load(query + i);
#pragma GCC unroll 4
    for (int u = 0; u < terms; u++) {
      const Float term = load(write + u * head.stride + i);
      const Float decayed = kDecays ? term * load(by + i) : term;
      first[u] = fma(when == Decay::after ? term : decayed, k, first[u]);
      last[u] = fma(decayed, q, last[u]);
      if (kDecays) store(write + u * head.stride + i, decayed);
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < terms; u++) total[s + u] = first[u], total[kDeltaTerms + s + u] = last[u];
}

// The vectors with which a token looks at the state, before its terms with `key`, after them with `query`: their
// rows for Q, and their products with the terms, of which the first `old` are of other tokens.
template <Decay when>
GALLEY_INLINE void look(DeltaHead& head, int64_t old, const float* key, const float* query,
                        const float* by, float* rows, float* products) {
  for (int64_t i = 0; i < head.stride; i += kLanes) {
    const Float decay = load(head.decay + i), next = decay * load(by + i);
    store(rows + i, load(key + i) * (when == Decay::after ? decay : next));
    store(rows + head.stride + i, load(query + i) * next);
    store(head.decay + i, next);
  }
  constexpr bool kDecays = when != Decay::uniform;
  Float total[2 * kDeltaTerms];
  int64_t s = 0;
  for (; s + 4 <= old; s += 4) term_products<4, kDecays, when>(head, s, key, query, by, total);
  for (; s + 2 <= old; s += 2) term_products<2, kDecays, when>(head, s, key, query, by, total);
  for (; s < old; s++) term_products<1, kDecays, when>(head, s, key, query, by, total);
  for (; s < head.terms; s++) term_products<1, false, when>(head, s, key, query, by, total);
  for (; s < kDeltaTerms; s++) total[s] = total[kDeltaTerms + s] = zero();
  sum_each<2 * kDeltaTerms>(total, products);
  if (when == Decay::uniform) store(products, load(products) * load(head.scale));
}

// sums[r][v] = sum over keys, in order, of rows[r] * Q.
template <int rows, int wide>
GALLEY_INLINE void read_numbers(const float* q, int64_t pitch, const DeltaHead& head,
                                const float* from, float* sums, Ahead& ahead) {
  Float total[rows][wide];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) total[r][v] = zero();
  }
  for (int64_t j = 0; j < head.keys; j++, q += pitch) {
    if (j % 4 == 0) ahead.step();
    Float number[wide];
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) {
      number[v] = load(q + v * kLanes);
      if (rows == 2) __builtin_prefetch(q + v * kLanes + kDeltaAhead);
    }
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
    for (int v = 0; v < wide; v++) store(sums + (r * wide + v) * kLanes, total[r][v]);
  }
}

// The rows of a group's tokens, for 16 * wide values.
template <int wide>
GALLEY_INLINE void read_rows(const float* q, int64_t pitch, const DeltaHead& head,
                             DeltaGroup& group, float* sums) {
  const int64_t rows = 2 * group.count;
  int64_t r = 0;
  for (; r + kDeltaRows <= rows; r += kDeltaRows) {
    read_numbers<kDeltaRows, wide>(q, pitch, head, group.rows + r * head.stride,
                                   sums + r * wide * kLanes, group.ahead);
  }
  for (; r < rows; r += 2) {
    read_numbers<2, wide>(q, pitch, head, group.rows + r * head.stride, sums + r * wide * kLanes,
                          group.ahead);
  }
}

// Q = decay * Q + write[i] * value[i] of all terms, whose values are scaled, for some keys.
template <int keys, int wide>
GALLEY_INLINE void add_keys(float* q, int64_t pitch, const DeltaHead& head, int64_t j,
                            const Float (&value)[kDeltaTerms][wide]) {
  Float number[keys][wide];
#pragma GCC unroll 4
  for (int i = 0; i < keys; i++) {
    const Float decay = all(head.decay[j + i]);
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) number[i][v] = decay * load(q + i * pitch + v * kLanes);
  }
#pragma GCC unroll 8
  for (int s = 0; s < kDeltaTerms; s++) {
#pragma GCC unroll 4
    for (int i = 0; i < keys; i++) {
      const Float write = all(head.write[s * head.stride + j + i]);
#pragma GCC unroll 4
      for (int v = 0; v < wide; v++) number[i][v] = fma(write, value[s][v], number[i][v]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < keys; i++) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) store(q + i * pitch + v * kLanes, number[i][v]);
  }
}

// The same for all keys; `values` are those of the terms.
template <int wide>
GALLEY_INLINE void add_terms(float* q, int64_t pitch, const DeltaHead& head, const float* values,
                             Ahead& ahead) {
  Float value[kDeltaTerms][wide];
#pragma GCC unroll 8
  for (int s = 0; s < kDeltaTerms; s++) {
    const Float scale = all(head.scale[s]);
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) value[s][v] = scale * load(values + s * head.width + v * kLanes);
  }
  int64_t j = 0;
  for (; j + kDeltaKeys <= head.keys; j += kDeltaKeys, q += kDeltaKeys * pitch) {
    ahead.step();
    add_keys<kDeltaKeys, wide>(q, pitch, head, j, value);
  }
  for (; j < head.keys; j++, q += pitch) add_keys<1, wide>(q, pitch, head, j, value);
}

// Writes of the tokens of a group, and their results: [tokens][values], of which `size` exist.
struct DeltaValues {
  const float* given;
  float* out;
  int64_t given_stride, out_stride, size;
};

// held += products[s] * term[s] of the first `terms` terms, in order.
template <int wide>
GALLEY_INLINE void add_products(Float (&held)[wide], const float* products, const Float* term,
                                int64_t terms) {
#pragma GCC unroll 8
  for (int64_t s = 0; s < terms; s++) {
    const Float by = all(products[s]);
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) held[v] = fma(by, term[s * wide + v], held[v]);
  }
}

// The values of the group's terms and the results of its tokens, for 16 * wide values from `column` on.
// `kCorrect`: a token has two terms, of what it writes and of what it found.
template <int wide, bool kCorrect>
GALLEY_INLINE void solve(const DeltaHead& head, const DeltaGroup& group, int64_t first,
                         int64_t count, const float* sums, const DeltaValues& values,
                         int64_t column) {
  constexpr int64_t each = kCorrect ? 2 : 1;
  float* terms = head.value + column;
  Float term[kDeltaTerms * wide];
  for (int64_t s = 0; s < first; s++) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) term[s * wide + v] = load(terms + s * head.width + v * kLanes);
  }
  const auto sum_of = [&](int64_t row, Float (&to)[wide]) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) to[v] = load(sums + (row * wide + v) * kLanes);
  };
#pragma GCC unroll 8
  for (int64_t t = 0; t < count; t++) {
    const int64_t n = first + t * each;
    Float held[wide];
    sum_of(2 * t, held);
    add_products<wide>(held, group.products[t], term, n);
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) {
      const int part = lanes_of(values.size - column - v * kLanes);
      const float* given = values.given + t * values.given_stride + column + v * kLanes;
      Float value = load_part(given, part);
      if (!kCorrect) value = (value - held[v]) * all(group.rate[t]);
      term[n * wide + v] = value;
      store(terms + n * head.width + v * kLanes, value);
      if (kCorrect) {
        term[(n + 1) * wide + v] = held[v];
        store(terms + (n + 1) * head.width + v * kLanes, held[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t t = 0; t < count; t++) {
    Float y[wide];
    sum_of(2 * t + 1, y);
    add_products<wide>(y, group.products[t] + kDeltaTerms, term, first + (t + 1) * each);
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) {
      const int part = lanes_of(values.size - column - v * kLanes);
      store_part(values.out + t * values.out_stride + column + v * kLanes, y[v], part);
    }
  }
}

// The group's tokens, for 16 * wide values of Q from `column` on.
template <int wide, bool kCorrect>
GALLEY_INLINE void delta_column(const DeltaHead& head, DeltaGroup& group, float* q, int64_t pitch,
                                const DeltaValues& values, int64_t column) {
  alignas(64) float sums[2 * kDeltaTerms * wide * kLanes];
  constexpr int64_t kMost = kCorrect ? kDeltaTerms / 2 : kDeltaTerms;
  read_rows<wide>(q, pitch, head, group, sums);
  if (group.count == kMost) {
    solve<wide, kCorrect>(head, group, 0, kMost, sums, values, column);
  } else {
    solve<wide, kCorrect>(head, group, group.first, group.count, sums, values, column);
  }
  if (head.terms == kDeltaTerms) add_terms<wide>(q, pitch, head, head.value + column, group.ahead);
}

// The group's tokens, whose terms have been added to `head` but for their values.
template <bool kCorrect>
GALLEY_INLINE void delta_group(DeltaHead& head, DeltaGroup& group, const DeltaValues& values) {
  int64_t column = 0;
  for (; column + kDeltaPanel <= head.width; column += kDeltaPanel) {
    for (int64_t v = 0; v < kDeltaPanel; v += kDeltaWide * kLanes) {
      delta_column<kDeltaWide, kCorrect>(head, group, head.numbers + column * head.keys + v,
                                         kDeltaPanel, values, column + v);
    }
  }
  for (; column < head.width; column += kLanes) {
    delta_column<1, kCorrect>(head, group, head.numbers + column * head.keys, kLanes, values,
                              column);
  }
  if (head.terms == kDeltaTerms) head.clear();
}

// 1 / (1 + e^-x), for x of at least -80: e^-x stays finite.
GALLEY_INLINE Float sigmoid(const Float& x) {
  const Float to = all(1.0f) + exp2_nonpositive(max(all(-80.0f), x) * all(-1.44269504f));
#if GALLEY_PARTS == 1
  // A step of Newton's method from 14 bits of 1 / to; a division takes 16 cycles.
  const Float near{{_mm512_rcp14_ps(to.part[0])}};
  return near * fma(zero() - to, near, all(2.0f));
#else
  return all(1.0f) / to;
#endif
}

// Decays of the tokens of a group: one number each,
struct GatedDecays {
  static constexpr Decay when = Decay::uniform;
  alignas(64) float decay[kLanes];

  GALLEY_INLINE void begin(const GatedDeltaRun& run, int64_t start, int64_t count) {
    for (int64_t t = 0; t < kLanes; t++) {
      decay[t] = t < count ? run.alpha[(start + t) * run.alpha_stride] : 0.0f;
    }
    store(decay, exp(all(run.a) * softplus(load(decay) + all(*run.dt_bias))));
  }
  GALLEY_INLINE void get(const GatedDeltaRun& run, int64_t, int64_t t, DeltaHead& head,
                         float* to) const {
    const Float by = all(decay[t]);
    for (int64_t i = 0; i < run.keys; i += kLanes) store(to + i, by);
    store(head.scale, load(head.scale) * by);
  }
  static int64_t columns(const GatedDeltaRun&) { return 1; }
};

// or one of each key.
struct KeyedDecays {
  static constexpr Decay when = Decay::before;

  GALLEY_INLINE void begin(const GatedDeltaRun&, int64_t, int64_t) {}
  GALLEY_INLINE void get(const GatedDeltaRun& run, int64_t start, int64_t t, DeltaHead&,
                         float* to) const {
    const float* from = run.alpha + (start + t) * run.alpha_stride;
    for (int64_t i = 0; i < run.keys; i += kLanes) {
      const int part = lanes_of(run.keys - i);
      const Float alpha = load_part(from + i, part) + load_part(run.dt_bias + i, part);
      store(to + i, exp2_nonpositive(all(1.44269504f * run.a) * softplus(alpha)));
    }
  }
  static int64_t columns(const GatedDeltaRun& run) { return run.keys; }
};

// Factors that give q and k of a group's tokens their lengths.
struct Lengths {
  float factor[2 * kDeltaTerms];  // those of q, those of k

  GALLEY_INLINE Lengths(const GatedDeltaRun& run, int64_t start, int64_t count) {
    Float squares[2 * kDeltaTerms];
    for (int64_t t = 0; t < kDeltaTerms; t++) {
      const int64_t n = t < count ? run.keys : 0;
      squares[t] = squared(run.q + (start + t) * run.q_stride, n);
      squares[kDeltaTerms + t] = squared(run.k + (start + t) * run.k_stride, n);
    }
    sum_each<2 * kDeltaTerms>(squares, factor);
    const float root = 1.0f / __builtin_sqrtf(static_cast<float>(run.keys));
    for (int64_t t = 0; t < 2 * kDeltaTerms; t++) {
      factor[t] = (t < kDeltaTerms ? root : 1.0f) / __builtin_sqrtf(factor[t] + run.eps);
    }
  }
  static GALLEY_INLINE Float squared(const float* x, int64_t n) {
    Float squares = zero();
    for (int64_t i = 0; i < n; i += kLanes) {
      const Float v = load_part(x + i, lanes_of(n - i));
      squares = fma(v, v, squares);
    }
    return squares;
  }
};

template <class Decays>
GALLEY_INLINE void delta_run(const GatedDeltaRun& run, float* unit, float* scratch) {
  DeltaHead head(unit, run.keys, run.values);
  float *decay = scratch, *query = decay + head.stride;
  Decays decays;
  DeltaGroup group(1);
  group.rows = query + head.stride;
  for (int64_t start = 0; start < run.count; start += group.count) {
    const int64_t room = kDeltaTerms - head.terms, left = run.count - start;
    group.first = head.terms;
    group.count = left < room ? left : room;
    decays.begin(run, start, group.count);
    for (int64_t t = 0; t < kLanes; t++) {
      group.rate[t] = t < group.count ? run.beta[(start + t) * run.beta_stride] : 0.0f;
    }
    store(group.rate, sigmoid(load(group.rate)));
    const Lengths lengths(run, start, group.count);
    group.ahead.clear();
    for (int64_t t = start + group.count; t < run.count && t < start + group.count + kDeltaTerms;
         t++) {
      group.ahead.add(run.alpha + t * run.alpha_stride, Decays::columns(run));
      group.ahead.add(run.beta + t * run.beta_stride, 1);
      group.ahead.add(run.q + t * run.q_stride, run.keys);
      group.ahead.add(run.k + t * run.k_stride, run.keys);
      group.ahead.add(run.v + t * run.v_stride, run.values);
      group.ahead.add(run.out + t * run.out_stride, run.values);
    }
    for (int64_t t = 0; t < group.count; t++) {
      const float* q = run.q + (start + t) * run.q_stride;
      const float* k = run.k + (start + t) * run.k_stride;
      const Float of_q = all(lengths.factor[t]), of_k = all(lengths.factor[kDeltaTerms + t]);
      float* key = head.next();
      for (int64_t i = 0; i < run.keys; i += kLanes) {
        store(query + i, load_part(q + i, lanes_of(run.keys - i)) * of_q);
        store(key + i, load_part(k + i, lanes_of(run.keys - i)) * of_k);
      }
      decays.get(run, start, t, head, decay);
      const int64_t old = head.terms;
      head.add();
      look<Decays::when>(head, old, key, query, decay, group.rows + 2 * t * head.stride,
                         group.products[t]);
    }
    delta_group<false>(head, group,
                       {run.v + start * run.v_stride, run.out + start * run.out_stride,
                        run.v_stride, run.out_stride, run.values});
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
  float *key, *decay, *query, *write, *correct, *value;
};

// The token's vectors before its key has unit length, and its v'. What is to be summed: the squares of the key, and
// the factor of v' that is added to its result.
GALLEY_INLINE void wkv7_token(const Wkv7Run& run, int64_t token, const Wkv7Token& to,
                              Float& length, Float& bonus) {
  const int64_t size = run.size;
  length = bonus = zero();
  for (int64_t i = 0; i < size; i += kLanes) {
    const int part = lanes_of(size - i);
    const auto of = [&](const float* x, int64_t stride) {
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
    store(to.value + i, v);
  }
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
  constexpr int64_t kMost = kDeltaTerms / 2;
  DeltaHead head(unit, run.size, run.size);
  const int64_t n = head.stride;
  float *y = scratch, *vectors = y + kMost * n;
  float* values = vectors + 3 * kMost * n;
  DeltaGroup group(2);
  group.rows = values + kMost * n;
  for (int64_t start = 0; start < run.count; start += group.count) {
    const int64_t room = (kDeltaTerms - head.terms) / 2, left = run.count - start;
    group.first = head.terms;
    group.count = left < room ? left : room;
    group.ahead.clear();
    for (int64_t t = start + group.count; t < run.count && t < start + group.count + kMost; t++) {
      group.ahead.add(run.r + t * run.r_stride, n);
      group.ahead.add(run.w + t * run.w_stride, n);
      group.ahead.add(run.k + t * run.k_stride, n);
      group.ahead.add(run.v + t * run.v_stride, n);
      group.ahead.add(run.a + t * run.a_stride, n);
      group.ahead.add(run.out + t * run.out_stride, n);
      if (!run.first) continue;
      group.ahead.add(run.first + t * run.first_stride, n);
      group.ahead.add(run.mix + t * run.mix_stride, n);
    }
    Wkv7Token tokens[kMost];
    Float sums[4 * kMost];
    float summed[4 * kMost];
    for (int64_t t = 0; t < kMost; t++) {
      sums[t] = sums[kMost + t] = sums[2 * kMost + t] = sums[3 * kMost + t] = zero();
      if (t >= group.count) continue;
      float *at = vectors + 3 * t * n, *terms = head.next() + 2 * t * n;
      tokens[t] = {at, at + n, at + 2 * n, terms, terms + n, values + t * n};
      wkv7_token(run, start + t, tokens[t], sums[t], sums[kMost + t]);
    }
    sum_each<4 * kMost>(sums, summed);
    const float* bonus = summed + kMost;
    for (int64_t t = 0; t < group.count; t++) {
      const Wkv7Token& token = tokens[t];
      const float norm = __builtin_sqrtf(summed[t]);
      const Float inverse = all(1.0f / (norm > 1e-12f ? norm : 1e-12f));
      for (int64_t i = 0; i < run.size; i += kLanes) {
        const Float key = load(token.key + i) * inverse;
        store(token.key + i, key);
        store(token.correct + i, load(token.correct + i) * key);
      }
      const int64_t old = head.terms;
      head.add(), head.add();
      look<Decay::after>(head, old, token.key, token.query, token.decay, group.rows + 2 * t * n,
                         group.products[t]);
    }
    delta_group<true>(head, group, {values, y, n, n, run.size});
    for (int64_t t = 0; t < group.count; t++) {
      wkv7_result(run, y + t * n, values + t * n, bonus[t],
                  run.out + (start + t) * run.out_stride);
    }
  }
  head.keep();
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
