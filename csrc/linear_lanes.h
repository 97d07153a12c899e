// What linear needs beyond math_lanes.h: dot products of codes, scales, prefetching. Compiled once
// per instruction set (variants.h).
#pragma once
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kHalves = 2;  // a panel's 32 columns are two times sixteen lanes

GALLEY_INLINE int32_t word_at(const uint8_t* p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return word;
}
GALLEY_INLINE float float_at(const uint8_t* p) {
  float value;
  memcpy(&value, p, sizeof value);
  return value;
}
GALLEY_INLINE Int words(const uint8_t* p) { return load(reinterpret_cast<const int32_t*>(p)); }

GALLEY_INLINE Float to_float(const Int& a) {
  Float r;
  GALLEY_EACH_PART r.part[i] = __builtin_convertvector(a.part[i], FloatPart);
  return r;
}

// Exact integer dot products of unsigned codes w (four a lane) and signed values x, of codes around
// kZero (0, 8 or 128):   start(-8 * sum of all x) + dot(w, x) + ... = sum of (w - kZero) * x.
template <int kZero> GALLEY_INLINE Int start(int32_t minus8_sum);
template <int kZero> GALLEY_INLINE Int dot(const Int& acc, const Int& w, int32_t x);

#if GALLEY_PARTS == 1

template <int kZero> GALLEY_INLINE Int start(int32_t minus8_sum) {
  if (kZero == 0) return Int{};
  const Int eight = all(minus8_sum);
  return kZero == 8 ? eight : shift_left<4>(eight);
}
template <int kZero> GALLEY_INLINE Int dot(const Int& acc, const Int& w, int32_t x) {
  return Int{{(IntPart)_mm512_dpbusd_epi32((__m512i)acc.part[0], (__m512i)w.part[0],
                                           (__m512i)all(x).part[0])}};
}
GALLEY_INLINE Float load_f16(const uint8_t* p) {
  return Float{{_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}};
}

#elif GALLEY_PARTS == 2

// Pairs of products are summed in 16 bits, which codes up to 15 cannot overflow. Codes around 128
// are made signed first, and the sign is moved to x, whose magnitude is at most 127:
// 2 * 128 * 127 < 2^15.
template <int kZero> GALLEY_INLINE Int start(int32_t minus8_sum) {
  return kZero == 8 ? all(minus8_sum) : Int{};
}
template <int kZero> GALLEY_INLINE Int dot(const Int& acc, const Int& w, int32_t x) {
  const __m256i ones = _mm256_set1_epi16(1), values = _mm256_set1_epi32(x);
  Int r;
  GALLEY_EACH_PART {
    __m256i codes = (__m256i)w.part[i], signed_x = values;
    if (kZero == 128) {
      const __m256i signed_codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
      codes = _mm256_abs_epi8(signed_codes);
      signed_x = _mm256_sign_epi8(values, signed_codes);
    }
    const __m256i pairs = _mm256_maddubs_epi16(codes, signed_x);
    r.part[i] = acc.part[i] + (IntPart)_mm256_madd_epi16(pairs, ones);
  }
  return r;
}
GALLEY_INLINE Float load_f16(const uint8_t* p) {
  const __m128i* halves = reinterpret_cast<const __m128i*>(p);
  return Float{{_mm256_cvtph_ps(_mm_loadu_si128(halves)),
                _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))}};
}

#else

template <int kZero> GALLEY_INLINE Int start(int32_t minus8_sum) {
  return all(kZero / 8 * minus8_sum);
}
template <int kZero> GALLEY_INLINE Int dot(const Int& acc, const Int& w, int32_t x) {
  Int r = acc;
  for (int shift = 0; shift < 32; shift += 8) {
    const int32_t value = static_cast<int8_t>(static_cast<uint32_t>(x) >> shift);
    GALLEY_EACH_PART r.part[i] += ((IntPart)((WordPart)w.part[i] >> shift) & 255) * value;
  }
  return r;
}
// Exact; f16 to f32 by moving the exponent, its subnormals by a multiplication.
GALLEY_INLINE Float load_f16(const uint8_t* p) {
  int32_t lane[kLanes];
  for (int i = 0; i < kLanes; i++) {
    uint16_t half;
    memcpy(&half, p + 2 * i, 2);
    lane[i] = half;
  }
  const Int bits = load(lane);
  const Int sign = shift_left<16>(bits & all(0x8000));
  const Int magnitude = shift_left<13>(bits & all(0x7fff));
  const Float scaled = as_float(magnitude) * all(5.192296858534828e33f);  // 2^112
  const Int infinite = as_int(scaled) >= all(0x47800000);                // 65536: inf or NaN
  const Int value = select(infinite, as_int(scaled) | all(0x7f800000), as_int(scaled));
  return as_float(value | sign);
}

#endif

// Sixteen scales or mins, as float32.
GALLEY_INLINE Float load_scale(const uint8_t* line, bool f32, int half) {
  return f32 ? load(reinterpret_cast<const float*>(line) + half * kLanes)
             : load_f16(line + half * kLanes * 2);
}

// A walk over weights that will be needed soon; `at` = null for none. Into the L1 cache, although L2
// would be near enough: with 16 rows bf16 took 11 % longer with L2 as the aim, other shapes as long.
struct Prefetch {
  const uint8_t* at = nullptr;
  int64_t step = 64;   // bytes for each line of words in use, of which there are two
  int64_t second = 0;  // where a second line lies, 0 = there is none
};
// Once for every two lines in use: evenly spread prefetches cost nothing, bursts do.
GALLEY_INLINE void advance(Prefetch& p) {
  if (p.at == nullptr) return;
  __builtin_prefetch(p.at);
  __builtin_prefetch(p.at + p.second);
  p.at += p.step;
}

// Pointers to R rows that move together. One register serves three rows (base, base + stride,
// base + 2 * stride are all addresses that x86 can form); the empty asm keeps the compiler from
// giving each row a register of its own, of which there are too few.
template <int R> struct RowPointers {
  static constexpr int kBases = (R + 2) / 3;
  const uint8_t* base[kBases];
  int64_t stride;

  GALLEY_INLINE RowPointers(const uint8_t* first, int64_t stride) : stride(stride) {
    for (int i = 0; i < kBases; i++) base[i] = first + 3 * i * stride;
  }
  GALLEY_INLINE const uint8_t* operator[](int r) const { return base[r / 3] + r % 3 * stride; }
  GALLEY_INLINE void advance(int64_t bytes) {
    _Pragma("GCC unroll 4") for (int i = 0; i < kBases; i++) {
      base[i] += bytes;
      asm("" : "+r"(base[i]));
    }
  }
};

}  // namespace GALLEY_VARIANT
}  // namespace galley
