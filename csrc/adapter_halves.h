// An adapter's panels of B for a panel of a layer's weight; included by kernels.
#pragma once
#include "adapters.h"
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

// For the two halves of the panel. Rank 0 = nothing is added.
struct HalfPanels {
  const uint8_t* b[2];
  const float* affine[2];
  int64_t rank[2];
  int32_t input[2];  // of low
};

GALLEY_INLINE HalfPanels half_panels(const AdapterAddend& addend, int64_t panel, int32_t place) {
  HalfPanels of{};
  for (int h = 0; h < 2; h++) {
    const AdapterAddend::Half& half = addend.halves[2 * panel + h];
    if (half.part < 0) continue;
    const AdapterPart& part = addend.parts[half.part];
    const int64_t output = addend.first_output + half.part;
    const float* affine = addend.table.affine(place, output);
    of.rank[h] = addend.table.input(place, addend.first_input + part.input).rank;
    of.input[h] = part.input;
    const int64_t bytes = adapter_panel_bytes(of.rank[h], addend.table.bf16);
    of.b[h] = addend.table.output(place, output) + half.panel * bytes;
    of.affine[h] = affine ? affine + half.panel * 2 * kLanes : nullptr;
    // The next panel of the weight has the same half of the next panel of B, or the one after it.
    const int64_t ahead = part.step == kAdapterPanel ? 2 * bytes : bytes;
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(of.b[h] + ahead + at, 0, 2);
  }
  return of;
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
