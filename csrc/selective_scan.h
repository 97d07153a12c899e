// State space recurrence of a run of channels (Mamba-1).
#pragma once
#include "variants.h"

namespace galley {

// Channels of a unit of the state: one register.
constexpr int64_t kScanChannels = 16;

// One run of tokens of one unit; `channels` <= kScanChannels. Rows are consecutive tokens.
struct SelectiveRun {
  const float* x;     // [count][channels], rows x_stride apart; likewise the others
  const float* dt;    // [count][channels]
  const float* b;     // [count][state_size]
  const float* c;
  const float* gate;  // [count][channels], or null
  float* out;         // [count][channels]
  int64_t x_stride, dt_stride, b_stride, c_stride, gate_stride, out_stride;
  int64_t channels, state_size, count;
  const float* a;     // [state_size][kScanChannels], times log2(e)
  const float* d;     // [kScanChannels]
};

GALLEY_VARIANTS(
    // `state`: [state_size][kScanChannels], updated.
    void selective_scan_run(const SelectiveRun& run, float* state);)

}  // namespace galley
