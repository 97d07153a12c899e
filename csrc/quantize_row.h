// float32 row -> activation row of any kind (layouts: linear.h). The one definition of rounding:
//
//   scale = max|x| / top,   q = round_to_even(x * (top / max|x|)),   all 0 where max|x| < 1e-30
//   q8, q8_row: top = 127.   q16: top = 127 * 256 + 127, and q is cut into two planes,
//   hi = floor((q + 128) / 256),   lo = q - 256 * hi, but -127 instead of -128: kernels that move a
//   sign from one factor to the other need the opposite of every byte
//
// A NaN or an infinity makes the scale NaN or infinite, and so the results.
// Everything here has internal linkage and is compiled for the instruction set of the file that
// includes it; all of them give the same bits.
#pragma once
#include <cstdint>

#include "linear.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace galley {
namespace {

// Round to nearest even; a NaN stays a NaN.
inline uint16_t bf16_from_float(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float float_from_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

// The largest |q| of so many planes of bytes.
constexpr int32_t top_of(int planes) { return planes == 1 ? 127 : 127 * 256 + 127; }

// Below 1e-30 the quotient might not be finite.
template <int kPlanes> inline float inverse_scale(float max) {
  return max >= 1e-30f ? static_cast<float>(top_of(kPlanes)) / max : 0.0f;
}
template <int kPlanes> inline float scale_of(float max) {
  return max / static_cast<float>(top_of(kPlanes));
}

// |x| as bits, whose order is that of the numbers with NaN on top: a NaN ends up in the scale.
inline uint32_t magnitude_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits & 0x7fffffffu;
}
inline float largest_magnitude(const float* x, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint32_t bits = magnitude_bits(x[i]);
    most = bits > most ? bits : most;
  }
  float max;
  __builtin_memcpy(&max, &most, 4);
  return max;
}

// One value; the caller's loop decides which values share the scale. The codes of NaN and infinity do
// not matter (the scale shows them), but must be equal on all instruction sets.
template <int kPlanes> inline int32_t quantize_value(float x, float inverse) {
  constexpr int32_t top = top_of(kPlanes);
  const float scaled = x * inverse;
  if (!(scaled >= -top && scaled <= top)) return scaled > 0.0f ? top : -top;
  return static_cast<int32_t>(__builtin_lrintf(scaled));
}

// The numbers of a group besides its codes.
inline void store_group_sums(const GroupedRow& row, int64_t group, float scale, int32_t first,
                             int32_t second) {
  const int32_t sum = first + second;
  row.scale[group] = scale;
  row.start[group] = -8 * sum;
  row.scaled_sum[group] = scale * static_cast<float>(sum);
  row.half[group] = -8 * first;
}

// A group of n <= 32 values; the tail is 0.
template <int kPlanes>
inline void quantize_group_tail(const float* x, int64_t n, const GroupedRow& row, int64_t group) {
  const float max = largest_magnitude(x, n), inverse = inverse_scale<kPlanes>(max);
  int8_t* q = row.q + group * kPlanes * kGroup;
  int32_t first = 0, second = 0;
  for (int64_t i = 0; i < kGroup; i++) {
    int32_t value = i < n ? quantize_value<kPlanes>(x[i], inverse) : 0;
    if (kPlanes == 1) {
      q[i] = static_cast<int8_t>(value);
    } else {
      const int32_t hi = (value + 128) >> 8, lo = value - 256 * hi;
      q[i] = static_cast<int8_t>(hi);
      q[kGroup + i] = static_cast<int8_t>(lo < -127 ? -127 : lo);
      value = 256 * hi + q[kGroup + i];
    }
    (i < kGroup / 2 ? first : second) += value;
  }
  store_group_sums(row, group, scale_of<kPlanes>(max), first, second);
}

// 32 values: a group (quantize_group), or a part of a row with one scale (quantize_part, which gives
// the sum of the codes).
#if defined(__AVX512F__)
template <int kPlanes> inline __m512i codes_of(__m512 x, __m512 inverse) {
  const __m512i least = _mm512_set1_epi32(-top_of(kPlanes));  // a NaN becomes the least integer
  return _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)), least);
}
// A plane, and the sums of its halves in lanes 0 and 4.
inline __m256i store_plane(int8_t* to, __m512i a, __m512i b) {
  const __m256i codes = _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), codes);
  __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), codes);
  sums = _mm256_hadd_epi32(sums, sums);
  return _mm256_hadd_epi32(sums, sums);
}
template <int kPlanes>
inline void quantize_group(const float* x, const GroupedRow& row, int64_t group) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  const __m512i most = _mm512_max_epi32((__m512i)_mm512_abs_ps(a), (__m512i)_mm512_abs_ps(b));
  const uint32_t bits = _mm512_reduce_max_epi32(most);
  float max;
  __builtin_memcpy(&max, &bits, 4);
  const __m512 inverse = _mm512_set1_ps(inverse_scale<kPlanes>(max));
  const __m512i c[2] = {codes_of<kPlanes>(a, inverse), codes_of<kPlanes>(b, inverse)};
  int8_t* q = row.q + group * kPlanes * kGroup;
  __m256i sums;
  if (kPlanes == 1) {
    sums = store_plane(q, c[0], c[1]);
  } else {
    __m512i hi[2], lo[2];
    for (int i = 0; i < 2; i++) {
      hi[i] = _mm512_srai_epi32(_mm512_add_epi32(c[i], _mm512_set1_epi32(128)), 8);
      const __m512i rest = _mm512_sub_epi32(c[i], _mm512_slli_epi32(hi[i], 8));
      lo[i] = _mm512_max_epi32(rest, _mm512_set1_epi32(-127));
    }
    sums = _mm256_slli_epi32(store_plane(q, hi[0], hi[1]), 8);
    sums = _mm256_add_epi32(sums, store_plane(q + kGroup, lo[0], lo[1]));
  }
  store_group_sums(row, group, scale_of<kPlanes>(max), _mm256_extract_epi32(sums, 0),
                   _mm256_extract_epi32(sums, 4));
}
inline int32_t quantize_part(const float* x, float inverse, int8_t* q) {
  const __m512 by = _mm512_set1_ps(inverse);
  const __m256i sums = store_plane(q, codes_of<1>(_mm512_loadu_ps(x), by),
                                   codes_of<1>(_mm512_loadu_ps(x + 16), by));
  return _mm256_extract_epi32(sums, 0) + _mm256_extract_epi32(sums, 4);
}
#elif defined(__AVX2__)
template <int kPlanes> inline __m256i codes_of(__m256 x, __m256 inverse) {
  const __m256i least = _mm256_set1_epi32(-top_of(kPlanes));  // a NaN becomes the least integer
  return _mm256_max_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)), least);
}
inline int32_t reduce_add(__m256i v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
}
// Packing works on 128-bit halves; the permutation puts words of four values back in order.
inline void store_bytes(int8_t* to, const __m256i (&c)[4]) {
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(c[0], c[1]),
                                            _mm256_packs_epi32(c[2], c[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_permutevar8x32_epi32(packed, order));
}
template <int kPlanes>
inline void quantize_group(const float* x, const GroupedRow& row, int64_t group) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256 v[4];
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < 4; i++) {
    v[i] = _mm256_loadu_ps(x + 8 * i);
    most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
  }
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  const int32_t one = _mm_cvtsi128_si32(four), other = _mm_extract_epi32(four, 1);
  const int32_t bits = one > other ? one : other;
  float max;
  __builtin_memcpy(&max, &bits, 4);
  const __m256 inverse = _mm256_set1_ps(inverse_scale<kPlanes>(max));
  __m256i c[4];
  for (int i = 0; i < 4; i++) c[i] = codes_of<kPlanes>(v[i], inverse);
  int8_t* q = row.q + group * kPlanes * kGroup;
  if (kPlanes == 1) {
    store_bytes(q, c);
  } else {
    __m256i hi[4], lo[4];
    for (int i = 0; i < 4; i++) {
      hi[i] = _mm256_srai_epi32(_mm256_add_epi32(c[i], _mm256_set1_epi32(128)), 8);
      const __m256i shifted = _mm256_slli_epi32(hi[i], 8);
      lo[i] = _mm256_max_epi32(_mm256_sub_epi32(c[i], shifted), _mm256_set1_epi32(-127));
      c[i] = _mm256_add_epi32(shifted, lo[i]);
    }
    store_bytes(q, hi);
    store_bytes(q + kGroup, lo);
  }
  store_group_sums(row, group, scale_of<kPlanes>(max), reduce_add(_mm256_add_epi32(c[0], c[1])),
                   reduce_add(_mm256_add_epi32(c[2], c[3])));
}
inline int32_t quantize_part(const float* x, float inverse, int8_t* q) {
  __m256i c[4];
  for (int i = 0; i < 4; i++) {
    c[i] = codes_of<1>(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse));
  }
  store_bytes(q, c);
  return reduce_add(_mm256_add_epi32(_mm256_add_epi32(c[0], c[1]), _mm256_add_epi32(c[2], c[3])));
}
#else
template <int kPlanes>
inline void quantize_group(const float* x, const GroupedRow& row, int64_t group) {
  quantize_group_tail<kPlanes>(x, kGroup, row, group);
}
inline int32_t quantize_part(const float* x, float inverse, int8_t* q) {
  int32_t sum = 0;
  for (int64_t i = 0; i < kGroup; i++) {
    q[i] = static_cast<int8_t>(quantize_value<1>(x[i], inverse));
    sum += q[i];
  }
  return sum;
}
#endif

template <int kPlanes>
inline void store_groups_in(const GroupedRow& row, int64_t first, int64_t n, const float* x) {
  int64_t group = first / kGroup;
  for (; n >= kGroup; n -= kGroup, x += kGroup) quantize_group<kPlanes>(x, row, group++);
  if (n > 0) quantize_group_tail<kPlanes>(x, n, row, group);
}
// Values [first, first + n) of a row: from the border of a group to another, or to the row's end.
inline void store_groups(const GroupedRow& row, int64_t first, int64_t n, const float* x) {
  return row.planes == 2 ? store_groups_in<2>(row, first, n, x)
                         : store_groups_in<1>(row, first, n, x);
}

// One scale for the whole row.
inline void quantize_row_q8_row(const float* x, int64_t k, void* out) {
  int8_t* q = static_cast<int8_t*>(out);
  const int64_t padded = round_up(k, kGroup);
  const float max = largest_magnitude(x, k);
  const float inverse = inverse_scale<1>(max), scale = scale_of<1>(max);
  int32_t sum = 0;
  int64_t i = 0;
  for (; i + kGroup <= k; i += kGroup) sum += quantize_part(x + i, inverse, q + i);
  for (; i < padded; i++) {
    q[i] = i < k ? static_cast<int8_t>(quantize_value<1>(x[i], inverse)) : int8_t{0};
    sum += q[i];
  }
  __builtin_memcpy(q + padded, &scale, 4);
  __builtin_memcpy(q + padded + 4, &sum, 4);
}

// A float32 row as any kind; `out` has activation_bytes(kind, k).
inline void store_row(const float* x, int64_t k, Kind kind, void* out) {
  switch (kind) {
    case Kind::f32: __builtin_memcpy(out, x, 4 * k); break;
    case Kind::bf16:
      for (int64_t i = 0; i < k; i++) static_cast<uint16_t*>(out)[i] = bf16_from_float(x[i]);
      break;
    case Kind::q8:
    case Kind::q16: store_groups(grouped_row(out, kind, k), 0, k, x); break;
    case Kind::q8_row: quantize_row_q8_row(x, k, out); break;
  }
}

}  // namespace
}  // namespace galley
