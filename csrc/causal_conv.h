// Causal convolution of a run of channels.
#pragma once
#include "variants.h"

namespace galley {

// Channels of a unit of the state.
constexpr int64_t kConvChannels = 64;

// One run of tokens of one unit. Rows are consecutive tokens; `channels` <= kConvChannels.
struct ConvRun {
  const float* x;         // rows x_stride apart
  const float* before;    // factor of x, or null
  const float* after;     // factor of the result, or null
  float* out;
  int64_t x_stride, before_stride, after_stride, out_stride;
  int64_t channels, taps, count;
  const float* weight;    // [taps][kConvChannels], the newest token's tap last
  const float* bias;      // [kConvChannels]
  bool silu;
};

GALLEY_VARIANTS(
    // `state`: the last taps - 1 inputs, [taps - 1][kConvChannels], oldest first; updated.
    void causal_conv_run(const ConvRun& run, float* state);)

}  // namespace galley
