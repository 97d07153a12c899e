// Definitions for selective_scan.h; compiled once per instruction set (variants.h).
//
//   step = softplus(dt)
//   S[n] = exp(step * a[n]) * S[n] + b[n] * (step * x)
//   y = sum over n, in order, of c[n] * S[n], + d * x, times silu(gate)
//
// Lanes are channels, so no sum runs over lanes. Some rows n of the state stay in registers for several
// tokens.
#pragma once
#include "selective_scan.h"
#include "softplus_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int64_t kScanTokens = 32;
// Rows of the state that are computed at a time.
#if GALLEY_PARTS == 1
constexpr int kScanRows = 8;
#else
constexpr int kScanRows = 2;
#endif

// Floats that are fetched ahead of the state and of the constants: of units to come.
constexpr int64_t kScanAhead = 1024;

// Of some tokens, a register each.
struct ScanTokens {
  alignas(64) float step[kScanTokens][kScanChannels];
  float in[kScanTokens][kScanChannels];  // step * x
  float y[kScanTokens][kScanChannels];
};

template <int rows>
GALLEY_INLINE void scan_rows(const SelectiveRun& run, int64_t start, int64_t count, int64_t n,
                             ScanTokens& tokens, float* state) {
  Float s[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
    s[i] = load(state + (n + i) * kScanChannels);
    __builtin_prefetch(state + (n + i) * kScanChannels + kScanAhead);
    __builtin_prefetch(run.a + (n + i) * kScanChannels + kScanAhead);
  }
  const float* a = run.a + n * kScanChannels;
  for (int64_t t = 0; t < count; t++) {
    const float* b = run.b + (start + t) * run.b_stride + n;
    const float* c = run.c + (start + t) * run.c_stride + n;
    const Float step = load(tokens.step[t]), in = load(tokens.in[t]);
    Float sum = load(tokens.y[t]);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      const Float keep = exp2_nonpositive(step * load(a + i * kScanChannels));
      s[i] = fma(all(b[i]), in, s[i] * keep);
      sum = fma(all(c[i]), s[i], sum);
    }
    store(tokens.y[t], sum);
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) store(state + (n + i) * kScanChannels, s[i]);
}

void selective_scan_run(const SelectiveRun& run, float* state) {
  const int lanes = static_cast<int>(run.channels);
  const Float d = load(run.d);
  __builtin_prefetch(run.d + kScanAhead);
  ScanTokens tokens;
  for (int64_t start = 0; start < run.count; start += kScanTokens) {
    const int64_t count = run.count - start < kScanTokens ? run.count - start : kScanTokens;
    for (int64_t t = 0; t < count; t++) {
      const Float step = softplus(load_part(run.dt + (start + t) * run.dt_stride, lanes));
      store(tokens.step[t], step);
      store(tokens.in[t], step * load_part(run.x + (start + t) * run.x_stride, lanes));
      store(tokens.y[t], zero());
    }
    int64_t n = 0;
    for (; n + kScanRows <= run.state_size; n += kScanRows) {
      scan_rows<kScanRows>(run, start, count, n, tokens, state);
    }
    for (; n < run.state_size; n++) scan_rows<1>(run, start, count, n, tokens, state);
    for (int64_t t = start; t < start + count; t++) {
      const Float x = load_part(run.x + t * run.x_stride, lanes);
      Float sum = fma(d, x, load(tokens.y[t - start]));
      if (run.gate) sum = sum * silu(load_part(run.gate + t * run.gate_stride, lanes));
      store_part(run.out + t * run.out_stride, sum, lanes);
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
