// Sixteen float lanes in the registers of the instruction set, and the functions that kernels use
// on them. A kernel is written once on these types (NAME_kernel.h); its source is compiled once for
// each instruction set, each time in a namespace of its own (variants.h), so that the linker can
// never take one set's code for another's. Keep `std::` templates out of kernels: an inline
// function of the library compiled with AVX-512 could be linked into the generic code.
//
// The invariance rule: the tail of a row goes through the same functions as its body, with the
// missing lanes zero (`load_part`). Nothing is fused or reassociated except where `fma` is written.
// Results may differ between instruction sets (fma rounds once, its portable form twice).
#pragma once
#include <cstdint>
#include <cstring>

#if defined(GALLEY_AMX)
#include <immintrin.h>
#define GALLEY_VARIANT amx
#define GALLEY_PARTS 1
#elif defined(GALLEY_AVX512)
#include <immintrin.h>
#define GALLEY_VARIANT avx512
#define GALLEY_PARTS 1
#elif defined(GALLEY_AVX2)
#include <immintrin.h>
#define GALLEY_VARIANT avx2
#define GALLEY_PARTS 2
#else
#define GALLEY_VARIANT generic
#define GALLEY_PARTS 4
#endif
#define GALLEY_INLINE inline __attribute__((always_inline))

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kLanes = 16;
constexpr int kParts = GALLEY_PARTS;

// kParts registers that together hold 16 lanes. Comparisons give Int lanes of 0 or -1.
typedef float FloatPart __attribute__((vector_size(64 / GALLEY_PARTS)));
typedef int32_t IntPart __attribute__((vector_size(64 / GALLEY_PARTS)));
typedef uint32_t WordPart __attribute__((vector_size(64 / GALLEY_PARTS)));
struct Float {
  FloatPart part[kParts];
};
struct Int {
  IntPart part[kParts];
};

#define GALLEY_EACH_PART _Pragma("GCC unroll 4") for (int i = 0; i < kParts; i++)
#define GALLEY_BINARY(name, Result, Operand, expression)                     \
  GALLEY_INLINE Result name(const Operand& a, const Operand& b) {            \
    Result r;                                                                \
    GALLEY_EACH_PART r.part[i] = expression;                                 \
    return r;                                                                \
  }
GALLEY_BINARY(operator+, Float, Float, a.part[i] + b.part[i])
GALLEY_BINARY(operator-, Float, Float, a.part[i] - b.part[i])
GALLEY_BINARY(operator*, Float, Float, a.part[i] * b.part[i])
GALLEY_BINARY(operator/, Float, Float, a.part[i] / b.part[i])
GALLEY_BINARY(operator<, Int, Float, a.part[i] < b.part[i])
GALLEY_BINARY(operator>, Int, Float, a.part[i] > b.part[i])
GALLEY_BINARY(operator>=, Int, Float, a.part[i] >= b.part[i])
GALLEY_BINARY(operator+, Int, Int, a.part[i] + b.part[i])
GALLEY_BINARY(operator-, Int, Int, a.part[i] - b.part[i])
GALLEY_BINARY(operator*, Int, Int, a.part[i] * b.part[i])
GALLEY_BINARY(operator&, Int, Int, a.part[i] & b.part[i])
GALLEY_BINARY(operator|, Int, Int, a.part[i] | b.part[i])
GALLEY_BINARY(operator<, Int, Int, a.part[i] < b.part[i])
GALLEY_BINARY(operator>=, Int, Int, a.part[i] >= b.part[i])

GALLEY_INLINE Float all(float x) {
  Float r;
  GALLEY_EACH_PART r.part[i] = x - FloatPart{};
  return r;
}
GALLEY_INLINE Int all(int32_t x) {
  Int r;
  GALLEY_EACH_PART r.part[i] = x - IntPart{};
  return r;
}
GALLEY_INLINE Float zero() { return Float{}; }
// Lanes 0, 1, 2 ... 15.
GALLEY_INLINE Int lane_numbers() {
  alignas(64) static const int32_t numbers[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                      8, 9, 10, 11, 12, 13, 14, 15};
  Int r;
  memcpy(&r, numbers, sizeof r);
  return r;
}
GALLEY_INLINE Int is_nan(const Float& a) {
  Int r;
  GALLEY_EACH_PART r.part[i] = a.part[i] != a.part[i];
  return r;
}
GALLEY_INLINE Int as_int(const Float& a) {
  Int r;
  memcpy(&r, &a, sizeof r);
  return r;
}
GALLEY_INLINE Float as_float(const Int& a) {
  Float r;
  memcpy(&r, &a, sizeof r);
  return r;
}
template <int bits> GALLEY_INLINE Int shift_left(const Int& a) {
  Int r;
  GALLEY_EACH_PART r.part[i] = (IntPart)((WordPart)a.part[i] << bits);
  return r;
}
template <int bits> GALLEY_INLINE Int shift_right(const Int& a) {
  Int r;
  GALLEY_EACH_PART r.part[i] = (IntPart)((WordPart)a.part[i] >> bits);
  return r;
}
GALLEY_INLINE Float select(const Int& mask, const Float& a, const Float& b) {
  Float r;
  GALLEY_EACH_PART r.part[i] = mask.part[i] ? a.part[i] : b.part[i];
  return r;
}
GALLEY_INLINE Int select(const Int& mask, const Int& a, const Int& b) {
  Int r;
  GALLEY_EACH_PART r.part[i] = mask.part[i] ? a.part[i] : b.part[i];
  return r;
}
// Bit i of the result is lane i of a comparison.
GALLEY_INLINE uint32_t mask_bits(const Int& mask) {
#if GALLEY_PARTS == 1
  return _mm512_movepi32_mask((__m512i)mask.part[0]);
#elif GALLEY_PARTS == 2
  return _mm256_movemask_ps((__m256)mask.part[0]) | _mm256_movemask_ps((__m256)mask.part[1]) << 8;
#else
  int32_t lane[kLanes];
  memcpy(lane, &mask, sizeof lane);
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; i++) bits |= (lane[i] & 1u) << i;
  return bits;
#endif
}

// a * b + c, rounded once where the instruction set has it.
GALLEY_INLINE Float fma(const Float& a, const Float& b, const Float& c) {
#if GALLEY_PARTS == 1
  return Float{{_mm512_fmadd_ps(a.part[0], b.part[0], c.part[0])}};
#elif GALLEY_PARTS == 2
  return Float{{_mm256_fmadd_ps(a.part[0], b.part[0], c.part[0]),
                _mm256_fmadd_ps(a.part[1], b.part[1], c.part[1])}};
#else
  return a * b + c;
#endif
}
// The same for one number, with the same rounding.
GALLEY_INLINE float fma(float a, float b, float c) {
#if GALLEY_PARTS == 4
  return a * b + c;
#else
  return __builtin_fmaf(a, b, c);
#endif
}
// A NaN in `b` gives a NaN; a NaN in `a` is ignored (as x86 instructions do).
GALLEY_INLINE Float max(const Float& a, const Float& b) {
#if GALLEY_PARTS == 1
  return Float{{_mm512_max_ps(a.part[0], b.part[0])}};
#elif GALLEY_PARTS == 2
  return Float{{_mm256_max_ps(a.part[0], b.part[0]), _mm256_max_ps(a.part[1], b.part[1])}};
#else
  return select(a > b, a, b);
#endif
}
GALLEY_INLINE Float min(const Float& a, const Float& b) {
#if GALLEY_PARTS == 1
  return Float{{_mm512_min_ps(a.part[0], b.part[0])}};
#elif GALLEY_PARTS == 2
  return Float{{_mm256_min_ps(a.part[0], b.part[0]), _mm256_min_ps(a.part[1], b.part[1])}};
#else
  return select(a < b, a, b);
#endif
}

GALLEY_INLINE Float load(const float* p) {
  Float r;
  memcpy(&r, p, sizeof r);
  return r;
}
GALLEY_INLINE void store(float* p, const Float& a) { memcpy(p, &a, sizeof a); }
GALLEY_INLINE Int load(const int32_t* p) {
  Int r;
  memcpy(&r, p, sizeof r);
  return r;
}
GALLEY_INLINE void store(int32_t* p, const Int& a) { memcpy(p, &a, sizeof a); }
// The first n lanes (0 .. 16); the others are zero, or left unchanged in memory.
GALLEY_INLINE Float load_part(const float* p, int n) {
#if GALLEY_PARTS == 1
  return Float{{_mm512_maskz_loadu_ps((1u << n) - 1, p)}};
#else
  Float r{};
  memcpy(&r, p, n * sizeof(float));
  return r;
#endif
}
GALLEY_INLINE void store_part(float* p, const Float& a, int n) {
#if GALLEY_PARTS == 1
  _mm512_mask_storeu_ps(p, (1u << n) - 1, a.part[0]);
#else
  memcpy(p, &a, n * sizeof(float));
#endif
}
GALLEY_INLINE Int load_part(const int32_t* p, int n) {
  return as_int(load_part(reinterpret_cast<const float*>(p), n));
}
GALLEY_INLINE void store_part(int32_t* p, const Int& a, int n) {
  store_part(reinterpret_cast<float*>(p), as_float(a), n);
}

// Sum and maximum over the lanes, in one fixed order: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
GALLEY_INLINE float sum(const Float& a) {
#if GALLEY_PARTS == 1
  return _mm512_reduce_add_ps(a.part[0]);
#else
  float v[kLanes];
  store(v, a);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) v[i] += v[i + half];
  }
  return v[0];
#endif
}
// sum(a[i]) of N vectors, in the same order.
template <int N> GALLEY_INLINE void sum_each(const Float* a, float* out) {
#if GALLEY_PARTS == 1
  if constexpr (N == 16) {  // a transposition: 15 additions in all
    __m512 quads[4];
    for (int i = 0; i < 4; i++) {
      __m512 pairs[2];
      for (int j = 0; j < 2; j++) {
        const __m512 x = a[4 * i + 2 * j].part[0], y = a[4 * i + 2 * j + 1].part[0];
        pairs[j] = _mm512_shuffle_f32x4(x, y, 0x44) + _mm512_shuffle_f32x4(x, y, 0xee);
      }
      quads[i] = _mm512_shuffle_f32x4(pairs[0], pairs[1], 0x88) +
                 _mm512_shuffle_f32x4(pairs[0], pairs[1], 0xdd);
    }
    // quads[i]: four partial sums of each of a[4 i] .. a[4 i + 3].
    __m512 halves[2];
    for (int i = 0; i < 2; i++) {
      const __m512d x = _mm512_castps_pd(quads[2 * i]), y = _mm512_castps_pd(quads[2 * i + 1]);
      halves[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y)) +
                  _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
    const __m512 sums = _mm512_shuffle_ps(halves[0], halves[1], 0x88) +
                        _mm512_shuffle_ps(halves[0], halves[1], 0xdd);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_ps(out, _mm512_permutexvar_ps(order, sums));
    return;
  }
#endif
  for (int i = 0; i < N; i++) out[i] = sum(a[i]);
}
GALLEY_INLINE float max_lane(const Float& a) {
#if GALLEY_PARTS == 1
  return _mm512_reduce_max_ps(a.part[0]);
#else
  float v[kLanes];
  store(v, a);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
  }
  return v[0];
#endif
}

// e^x to 2 units in the last place; 0 below -87.3, infinity above 88.3, NaN of NaN.
GALLEY_INLINE Float exp(const Float& x) {
  const Float lowest = all(-87.33654f), highest = all(88.37626f);
  const Float inside = min(highest, max(lowest, x));
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer.
  const Float magic = all(12582912.0f);
  const Float n = fma(inside, all(1.44269504f), magic) - magic;
  const Float r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), inside));
  Float p = fma(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p, r * r, r) + all(1.0f);
  const Int exponent = shift_left<23>(as_int(n + magic));  // low bits of n + magic are n
  Float y = as_float(as_int(p) + exponent);
  y = select(x < lowest, zero(), y);
  y = select(x > highest, all(__builtin_inff()), y);
  return select(is_nan(x), x, y);
}

// 2^x for x <= 0, or a rounding error above (what attention needs), to 2 units in the last place; 0
// below -126 (with AVX-512: where it is below the smallest float), NaN of NaN, exactly 1 of 0.
GALLEY_INLINE Float exp2_nonpositive(const Float& x) {
#if GALLEY_PARTS == 1
  // r = x - floor(x), and scalef multiplies by 2^floor(x).
  const Float r{{_mm512_reduce_ps(x.part[0], _MM_FROUND_TO_NEG_INF)}};
  Float p = fma(all(1.867130477e-03f), r, all(9.017029188e-03f));
  p = fma(p, r, all(5.579991422e-02f));
  p = fma(p, r, all(2.401644497e-01f));
  p = fma(p, r, all(6.931513119e-01f));
  p = fma(p, r, all(1.0f));
  return Float{{_mm512_scalef_ps(p.part[0], x.part[0])}};
#else
  const Float lowest = all(-126.0f);
  const Float inside = max(lowest, x);
  const Float magic = all(12582912.0f);
  const Float n = (inside + magic) - magic;
  const Float r = inside - n;
  Float p = fma(all(1.326472405e-03f), r, all(9.671512865e-03f));
  p = fma(p, r, all(5.550733754e-02f));
  p = fma(p, r, all(2.402224208e-01f));
  p = fma(p, r, all(6.931469776e-01f));
  p = fma(p, r, all(1.0f));
  const Float y = as_float(as_int(p) + shift_left<23>(as_int(n + magic)));
  return select(is_nan(x), x, select(x < lowest, zero(), y));
#endif
}

// Near 0 a polynomial, so that small numbers keep their relative precision.
GALLEY_INLINE Float tanh(const Float& x) {
  const Float z = x * x;
  Float p = fma(all(-5.70498872745e-3f), z, all(2.06390887954e-2f));
  p = fma(p, z, all(-5.37397155531e-2f));
  p = fma(p, z, all(1.33314422036e-1f));
  p = fma(p, z, all(-3.33332819422e-1f));
  const Float small = fma(p * z, x, x);
  const Float far = all(1.0f) - all(2.0f) / (exp(x + x) + all(1.0f));
  return select(z < all(0.390625f), small, far);
}

// x * sigmoid(x).
GALLEY_INLINE Float silu(const Float& x) { return x / (all(1.0f) + exp(zero() - x)); }

// bf16, rounded to nearest even, NaN stays NaN. Low halves of the lanes; the high ones are zero.
GALLEY_INLINE Int to_bf16(const Float& a) {
#if GALLEY_PARTS == 1
  const __m256i half = (__m256i)_mm512_cvtneps_pbh(a.part[0]);
  return Int{{(IntPart)_mm512_cvtepu16_epi32(half)}};
#else
  const Int bits = as_int(a);
  const Int odd = shift_right<16>(bits) & all(1);
  const Int rounded = shift_right<16>(bits + all(0x7fff) + odd);
  const Int quiet = shift_right<16>(bits) | all(0x40);
  return select(is_nan(a), quiet, rounded);
#endif
}
GALLEY_INLINE void store_bf16_part(uint16_t* p, const Float& a, int n) {
#if GALLEY_PARTS == 1
  _mm256_mask_storeu_epi16(p, (1u << n) - 1, (__m256i)_mm512_cvtneps_pbh(a.part[0]));
#else
  int32_t lane[kLanes];
  store(lane, to_bf16(a));
  for (int i = 0; i < n; i++) p[i] = static_cast<uint16_t>(lane[i]);
#endif
}
GALLEY_INLINE void store_bf16(uint16_t* p, const Float& a) { store_bf16_part(p, a, kLanes); }
GALLEY_INLINE Float load_bf16_part(const uint16_t* p, int n) {
#if GALLEY_PARTS == 1
  const __m256i half = _mm256_maskz_loadu_epi16((1u << n) - 1, p);
  return Float{{(FloatPart)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)}};
#else
  int32_t lane[kLanes] = {};
  for (int i = 0; i < n; i++) lane[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  return as_float(load(lane));
#endif
}
// 32 numbers as bf16, in order, into 64 bytes.
GALLEY_INLINE void store_bf16(uint16_t* p, const Float& a, const Float& b) {
#if GALLEY_PARTS == 1
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b.part[0], a.part[0]);
  _mm512_storeu_si512(p, both);
#else
  store_bf16(p, a);
  store_bf16(p + kLanes, b);
#endif
}
// Each lane holds two bf16 (low half first): acc + a.low * b.low + a.high * b.high.
GALLEY_INLINE Float dot_bf16(const Float& acc, const Int& a, const Int& b) {
#if GALLEY_PARTS == 1
  return Float{{_mm512_dpbf16_ps(acc.part[0], (__m512bh)a.part[0], (__m512bh)b.part[0])}};
#else
  const Int high = all(static_cast<int32_t>(0xffff0000u));
  const Float low_sum = fma(as_float(shift_left<16>(a)), as_float(shift_left<16>(b)), acc);
  return fma(as_float(a & high), as_float(b & high), low_sum);
#endif
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
