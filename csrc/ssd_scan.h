// State space recurrence of some heads that share b and c (Mamba-2).
#pragma once
#include "variants.h"

namespace galley {

// One run of tokens. Rows are consecutive tokens; the heads' columns lie side by side.
struct SsdRun {
  const float* x;     // [count][heads][head_dim], rows x_stride apart; likewise the others
  const float* b;     // [count][state_size]
  const float* c;
  const float* dt;    // [count][heads]
  const float* gate;  // [count][heads][head_dim], or null
  float* out;         // [count][heads][head_dim]
  int64_t x_stride, b_stride, c_stride, dt_stride, gate_stride, out_stride;
  int64_t heads, head_dim, state_size, count;
  const float *a_log, *d, *dt_bias;  // [heads]; a = -exp(a_log)
  float dt_scale, dt_min, dt_max, gate_scale;
};

// Tokens that are computed at a time, rows of the state, and heads for which b and c are packed once.
constexpr int64_t kSsdTokens = 16, kSsdRows = 8, kSsdHeads = 4;
// Floats of scratch of `ssd_scan_run`, for a padded head_dim.
constexpr int64_t ssd_scratch(int64_t padded, int64_t state_size) {
  return kSsdTokens * 2 * (padded + state_size + kSsdRows);
}

GALLEY_VARIANTS(
    // The state of each head: [state_size][head_dim, padded to 16] and its scale (state_scale.h),
    // updated; scratch [ssd_scratch(..)].
    void ssd_scan_run(const SsdRun& run, float* const* states, float* scratch);)

}  // namespace galley
