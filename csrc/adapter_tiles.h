// B of adapters times low, by AMX tiles; included by kernels.
//
// Tiles c00 .. c11 are the sums of a block of rows for the two halves of a panel of a layer, as in
// linear_amx.h. A block of 32 numbers of low is one step: what lies behind a rank is zero in low, and
// whatever lies behind a panel of B is finite (adapters.h).
#pragma once
#include "adapter_halves.h"
#include "tiles.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int64_t kLowBytes = 2 * kLowBlock;

// Rows of low that are in two tiles; null = none there.
struct LowTiles {
  const uint8_t *upper, *lower;
  int64_t stride;
};

// C += low * B for one block of low; `halves`: bits of those to add to.
template <bool kLower>
GALLEY_INLINE void add_low(const LowTiles& low, const uint8_t* const* b, int halves) {
  if (low.upper) load_tile<a0>(low.upper, low.stride);
  if (kLower && low.lower) load_tile<a1>(low.lower, low.stride);
  if (halves & 1) {
    load_tile<b0>(b[0], 64);
    if (low.upper) add_bf16<c00, a0, b0>();
    if (kLower && low.lower) add_bf16<c10, a1, b0>();
  }
  if (halves & 2) {
    load_tile<b1>(b[1], 64);
    if (low.upper) add_bf16<c01, a0, b1>();
    if (kLower && low.lower) add_bf16<c11, a1, b1>();
  }
}

// Calls use(half, bits of the halves, blocks of low) for halves without gains and shifts, together where
// they have the same low.
template <class Use> GALLEY_INLINE void each_half(const HalfPanels& of, const Use& use) {
  const bool adds[2] = {of.rank[0] && !of.affine[0], of.rank[1] && !of.affine[1]};
  const bool together = adds[0] && adds[1] && of.rank[0] == of.rank[1] && of.input[0] == of.input[1];
  for (int h = 0; h < 2; h++) {
    if (!adds[h] || (h == 1 && together)) continue;
    use(h, together ? 3 : 1 << h, (of.rank[h] + kLowBlock - 1) / kLowBlock);
  }
}

// All rows of the block have one adapter.
template <bool kLower>
GALLEY_INLINE void add_to_all(const AdapterAddend& addend, const HalfPanels& of, int64_t row,
                              int upper) {
  const int64_t stride = addend.low.row_bytes();
  each_half(of, [&](int h, int halves, int64_t blocks) {
    const uint8_t* low = addend.low.at(row, of.input[h]);
    for (int64_t i = 0; i < blocks; i++, low += kLowBytes) {
      const uint8_t* b[2] = {of.b[0] + i * kTileRows * 64, of.b[1] + i * kTileRows * 64};
      add_low<kLower>({low, low + upper * stride, stride}, b, halves);
    }
  });
}

// Adds what the adapters of rows [row, row + size) without gains and shifts add. A row of another
// adapter is zero in the tiles of low, and so its sums stay.
template <bool kLower>
void add_adapters(const AdapterAddend& addend, int64_t panel, int64_t row, int upper, int64_t size) {
  const AdapterRows& in_step = *addend.rows;
  if (in_step.same_until[row] >= row + size) {
    const int32_t place = in_step.place[row];
    if (place == AdapterRows::kNone) return;
    return add_to_all<kLower>(addend, half_panels(addend, panel, place), row, upper);
  }
  alignas(64) uint8_t low[2 * kTileRows][kLowBytes] = {};
  uint32_t done = 0;
  for (int64_t first = 0; first < size; first++) {
    const int32_t place = in_step.place[row + first];
    if (place == AdapterRows::kNone || done >> first & 1) continue;
    uint32_t mine = 0;
    for (int32_t r = static_cast<int32_t>(row + first); r != AdapterRows::kNone && r < row + size;
         r = in_step.next[r]) {
      mine |= 1u << (r - row);
    }
    done |= mine;
    const uint32_t in_upper = upper < 32 ? (1u << upper) - 1 : ~0u;
    const LowTiles tiles{mine & in_upper ? low[0] : nullptr, mine & ~in_upper ? low[upper] : nullptr,
                         kLowBytes};
    const HalfPanels of = half_panels(addend, panel, place);
    each_half(of, [&](int h, int halves, int64_t blocks) {
      for (int64_t i = 0; i < blocks; i++) {
        for (uint32_t left = mine; left; left &= left - 1) {
          const int r = __builtin_ctz(left);
          memcpy(low[r], addend.low.at(row + r, of.input[h]) + i * kLowBytes, kLowBytes);
        }
        const uint8_t* b[2] = {of.b[0] + i * kTileRows * 64, of.b[1] + i * kTileRows * 64};
        add_low<kLower>(tiles, b, halves);
      }
    });
    for (uint32_t left = mine; left; left &= left - 1) memset(low[__builtin_ctz(left)], 0, kLowBytes);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
