// Definitions for ssd_scan.h; compiled once per instruction set (variants.h).
//
//   step = softplus(dt * dt_scale + dt_bias), within [dt_min, dt_max]
//   scale = scale * exp(step * a)          the state is S = scale * Q (state.h)
//   Q[n][p] = Q[n][p] + b[n] * (step / scale * x[p])
//   y[p] = scale * sum over n, in order, of c[n] * Q[n][p], + d * x[p]
//
// Lanes are elements p of the head, so no sum runs over lanes. A block of the state stays in registers
// for several tokens: per number and token two multiply-adds.
#pragma once
#include "softplus_lanes.h"
#include "ssd_scan.h"
#include "state_scale.h"

namespace galley {
namespace GALLEY_VARIANT {

// Registers of a row that stay side by side.
#if GALLEY_PARTS == 1
constexpr int kSsdWide = 2;
#else
constexpr int kSsdWide = 1;
#endif

// Tokens whose state has one scale, and what they read and write. b and c are packed by kSsdRows rows.
struct SsdTokens {
  const float *x, *b, *c;
  float* y;
  int64_t count, padded;
  float fold;  // factor of the state before the first token
};

// `rows` of the state and 16 * wide elements of the head.
template <int rows, int wide>
GALLEY_INLINE void ssd_block(float* state, const SsdTokens& tokens, const float* b, const float* c,
                             int64_t column) {
  const int64_t padded = tokens.padded;
  const Float fold = all(tokens.fold);
  Float s[rows][wide];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) s[i][v] = load(state + i * padded + v * kLanes) * fold;
  }
  const float* x = tokens.x + column;
  float* y = tokens.y + column;
  for (int64_t t = 0; t < tokens.count; t++, x += padded, y += padded) {
    Float in[wide], sum[wide];
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) in[v] = load(x + v * kLanes), sum[v] = load(y + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      const Float from = all(b[t * kSsdRows + i]), to = all(c[t * kSsdRows + i]);
#pragma GCC unroll 4
      for (int v = 0; v < wide; v++) {
        s[i][v] = fma(from, in[v], s[i][v]);
        sum[v] = fma(to, s[i][v], sum[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) store(y + v * kLanes, sum[v]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
    for (int v = 0; v < wide; v++) store(state + i * padded + v * kLanes, s[i][v]);
  }
}

// All rows of the state; `stride` tokens were packed.
template <int wide>
GALLEY_INLINE void ssd_columns(float* state, int64_t size, const SsdTokens& tokens, int64_t stride,
                               int64_t column) {
  for (int64_t n = 0; n < size; n += kSsdRows) {
    float* rows = state + n * tokens.padded + column;
    const float *b = tokens.b + n * stride, *c = tokens.c + n * stride;
    if (n + kSsdRows <= size) {
      ssd_block<kSsdRows, wide>(rows, tokens, b, c, column);
      continue;
    }
    for (int64_t i = 0; n + i < size; i++) {
      ssd_block<1, wide>(rows + i * tokens.padded, tokens, b + i, c + i, column);
    }
  }
}

// b or c of some tokens as [rows of the state / kSsdRows][tokens][kSsdRows]: their rows are pages
// apart, in few sets of the cache.
GALLEY_INLINE void pack_rows(const float* from, int64_t stride, int64_t count, int64_t size,
                             float* to) {
  for (int64_t n = 0; n < size; n += kSsdRows) {
    const int64_t rows = size - n < kSsdRows ? size - n : kSsdRows;
    for (int64_t t = 0; t < count; t++) {
      if (rows == kSsdRows) {
        memcpy(to + t * kSsdRows, from + t * stride + n, kSsdRows * sizeof(float));
      } else {
        memcpy(to + t * kSsdRows, from + t * stride + n, rows * sizeof(float));
      }
    }
    to += count * kSsdRows;
  }
}

// Of head h, time steps and decays of up to kSsdTokens tokens, in lanes.
GALLEY_INLINE void ssd_steps(const SsdRun& run, int64_t h, int64_t start, int64_t count,
                             float* steps, float* decays) {
  for (int64_t t = 0; t < kSsdTokens; t++) {
    steps[t] = t < count ? run.dt[(start + t) * run.dt_stride + h] : 0.0f;
  }
  const Float a = zero() - exp(all(run.a_log[h]));
  for (int64_t t = 0; t < count; t += kLanes) {
    Float step = softplus(fma(load(steps + t), all(run.dt_scale), all(run.dt_bias[h])));
    step = min(all(run.dt_max), max(all(run.dt_min), step));
    store(steps + t, step);
    store(decays + t, exp(step * a));
  }
}

// Head h of the tokens from `start` on, whose b and c are packed.
GALLEY_INLINE void ssd_head(const SsdRun& run, int64_t h, int64_t start, SsdTokens tokens, float* x,
                            float* state) {
  const int64_t padded = tokens.padded, count = tokens.count;
  const float *b = tokens.b, *c = tokens.c;
  float* y = tokens.y;
  alignas(64) float steps[kSsdTokens], decays[kSsdTokens], scales[kSsdTokens], folds[kSsdTokens];
  StateScale scale(state + run.state_size * padded);
  ssd_steps(run, h, start, count, steps, decays);
  const float* inputs = run.x + start * run.x_stride + h * run.head_dim;
  for (int64_t t = 0; t < count; t++) {
    folds[t] = scale.decay(decays[t]);
    scales[t] = scale.value;
    const Float factor = all(steps[t] / scale.value);
    for (int64_t p = 0; p < padded; p += kLanes) {
      const int64_t left = run.head_dim - p;
      const Float in = load_part(inputs + t * run.x_stride + p,
                                 left < kLanes ? static_cast<int>(left) : kLanes);
      store(x + t * padded + p, in * factor);
      store(y + t * padded + p, zero());
      __builtin_prefetch(inputs + (t + kSsdTokens) * run.x_stride + p);  // of the next block
    }
    __builtin_prefetch(run.dt + (start + t + kSsdTokens) * run.dt_stride + h);
  }
  scale.keep();
  for (int64_t t = 0; t < count;) {
    int64_t end = t + 1;
    while (end < count && folds[end] == 1.0f) end++;
    tokens = {x + t * padded, b + t * kSsdRows, c + t * kSsdRows, y + t * padded, end - t, padded,
              folds[t]};
    int64_t p = 0;
    for (; p + kSsdWide * kLanes <= padded; p += kSsdWide * kLanes) {
      ssd_columns<kSsdWide>(state, run.state_size, tokens, count, p);
    }
    for (; p < padded; p += kLanes) ssd_columns<1>(state, run.state_size, tokens, count, p);
    t = end;
  }
  const float* gates = run.gate ? run.gate + start * run.gate_stride + h * run.head_dim : nullptr;
  float* out = run.out + start * run.out_stride + h * run.head_dim;
  for (int64_t t = 0; t < count; t++) {
    const Float by = all(scales[t]);
    for (int64_t p = 0; p < padded; p += kLanes) {
      const int64_t left = run.head_dim - p;
      const int n = left < kLanes ? static_cast<int>(left) : kLanes;
      const Float in = load_part(inputs + t * run.x_stride + p, n);
      Float sum = fma(all(run.d[h]), in, load(y + t * padded + p) * by);
      if (gates) {
        sum = sum * silu(load_part(gates + t * run.gate_stride + p, n) * all(run.gate_scale));
      }
      store_part(out + t * run.out_stride + p, sum, n);
    }
  }
}

void ssd_scan_run(const SsdRun& run, float* const* states, float* scratch) {
  const int64_t padded = (run.head_dim + kLanes - 1) / kLanes * kLanes;
  float* x = scratch;
  float* y = x + kSsdTokens * padded;
  float* b = y + kSsdTokens * padded;
  float* c = b + kSsdTokens * (run.state_size + kSsdRows);
  for (int64_t start = 0; start < run.count; start += kSsdTokens) {
    const int64_t count = run.count - start < kSsdTokens ? run.count - start : kSsdTokens;
    pack_rows(run.b + start * run.b_stride, run.b_stride, count, run.state_size, b);
    pack_rows(run.c + start * run.c_stride, run.c_stride, count, run.state_size, c);
    for (int64_t h = 0; h < run.heads; h++) {
      ssd_head(run, h, start, {x, b, c, y, count, padded, 1.0f}, x, states[h]);
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
