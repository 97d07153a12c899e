// Definitions for probe.h; compiled once per instruction set (variants.h).
#pragma once
#include "math_lanes.h"
#include "probe.h"

namespace galley {
namespace GALLEY_VARIANT {

// Enough chains to hide an instruction's latency, and few enough for the registers.
constexpr int kChains = 12 / kParts;

// Lines that are fetched ahead, as the kernels do.
constexpr int64_t kProbeAhead = 64;

// Makes the compiler assume that these values are used, or have changed.
GALLEY_INLINE void touch(Float& v) {
  GALLEY_EACH_PART asm volatile("" : "+m"(v.part[i]));
}

void probe_read(const uint8_t* data, int64_t bytes) {
  typedef uint64_t Line __attribute__((vector_size(64)));
  Line sum[8] = {};
  const auto* lines = reinterpret_cast<const Line*>(data);
  for (int64_t i = 0; i + 8 <= bytes / 64; i += 8) {
    _Pragma("GCC unroll 8") for (int k = 0; k < 8; k++) {
      __builtin_prefetch(lines + i + k + kProbeAhead);
      sum[k] ^= lines[i + k];
    }
  }
  _Pragma("GCC unroll 8") for (int k = 1; k < 8; k++) sum[0] ^= sum[k];
  asm volatile("" ::"m"(sum[0]));
}

template <class Step>
GALLEY_INLINE void run_chains(int64_t count, Step step) {
  Float a = all(1e-3f), b = all(1e-3f), chain[kChains];
  touch(a), touch(b);
  _Pragma("GCC unroll 12") for (int k = 0; k < kChains; k++) chain[k] = zero();
  for (int64_t i = 0; i < count; i++) {
    _Pragma("GCC unroll 12") for (int k = 0; k < kChains; k++) chain[k] = step(a, b, chain[k]);
  }
  _Pragma("GCC unroll 12") for (int k = 0; k < kChains; k++) touch(chain[k]);
}

int64_t probe_f32(int64_t count) {
  run_chains(count, [](const Float& a, const Float& b, const Float& c) { return fma(a, b, c); });
  return count * kChains * kLanes * 2;
}

int64_t probe_bf16(int64_t count) {
#if defined(GALLEY_AVX512)
  run_chains(count, [](const Float& a, const Float& b, const Float& c) {
    return Float{{_mm512_dpbf16_ps(c.part[0], (__m512bh)a.part[0], (__m512bh)b.part[0])}};
  });
  return count * kChains * kLanes * 4;
#else
  return 0 * count;
#endif
}

int64_t probe_int8(int64_t count) {
#if defined(GALLEY_AVX512)
  run_chains(count, [](const Float& a, const Float& b, const Float& c) {
    return Float{{(FloatPart)_mm512_dpbusd_epi32((__m512i)c.part[0], (__m512i)a.part[0],
                                                 (__m512i)b.part[0])}};
  });
  return count * kChains * kLanes * 8;
#else
  return 0 * count;
#endif
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
