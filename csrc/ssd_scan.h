// State space recurrence of one head (Mamba-2).
#pragma once
#include "variants.h"

namespace galley {

// One run of tokens of one head. Rows are consecutive tokens.
struct SsdRun {
  const float* x;     // [count][head_dim], rows x_stride apart; likewise the others
  const float* b;     // [count][state_size]
  const float* c;
  const float* dt;    // [count]
  const float* gate;  // [count][head_dim], or null
  float* out;         // [count][head_dim]
  int64_t x_stride, b_stride, c_stride, dt_stride, gate_stride, out_stride;
  int64_t head_dim, state_size, count;
  float a, d, dt_bias, dt_scale, dt_min, dt_max, gate_scale;
};

// Tokens that are computed at a time, and rows of the state.
constexpr int64_t kSsdTokens = 16, kSsdRows = 8;
// Floats of scratch of `ssd_scan_run`, for a padded head_dim.
constexpr int64_t ssd_scratch(int64_t padded, int64_t state_size) {
  return kSsdTokens * 2 * (padded + state_size + kSsdRows);
}

GALLEY_VARIANTS(
    // `state`: [state_size][head_dim, padded to 16] and its scale (state_scale.h), updated; scratch
    // [ssd_scratch(..)].
    void ssd_scan_run(const SsdRun& run, float* state, float* scratch);)

}  // namespace galley
