// Operations of linear beyond math_lanes.h: dot products of codes, scales, prefetching. Compiled once
// per instruction set (variants.h).
#pragma once
#include "linear.h"
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

// Exact integer dot products of unsigned codes w (four a lane) and signed values x:
//   start of -m * (sum of all x) + dot(w, x) + ... = sum of (w - m) * x
// kSigned: codes are around 128, which an instruction set may subtract itself (kSubtracted = 128);
// else they are at most 127.
template <bool kSigned> GALLEY_INLINE Int dot(const Int& acc, const Int& w, int32_t x);

#if GALLEY_PARTS == 1

constexpr int32_t kSubtracted = 0;
template <bool kSigned> GALLEY_INLINE Int dot(const Int& acc, const Int& w, int32_t x) {
  return Int{{(IntPart)_mm512_dpbusd_epi32((__m512i)acc.part[0], (__m512i)w.part[0],
                                           (__m512i)all(x).part[0])}};
}
GALLEY_INLINE Float load_f16(const uint8_t* p) {
  return Float{{_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}};
}

#elif GALLEY_PARTS == 2

// Pairs of products are summed in 16 bits, which codes up to 127 cannot overflow, as the magnitude
// of x is at most 127: 2 * 127 * 127 < 2^15. Codes around 128 are made signed first, and the sign is
// moved to x: 2 * 128 * 127 < 2^15.
constexpr int32_t kSubtracted = 128;
template <bool kSigned> GALLEY_INLINE Int dot(const Int& acc, const Int& w, int32_t x) {
  const __m256i ones = _mm256_set1_epi16(1), values = _mm256_set1_epi32(x);
  Int r;
  GALLEY_EACH_PART {
    __m256i codes = (__m256i)w.part[i], signed_x = values;
    if (kSigned) {
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

constexpr int32_t kSubtracted = 0;
template <bool kSigned> GALLEY_INLINE Int dot(const Int& acc, const Int& w, int32_t x) {
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

#if GALLEY_PARTS == 1
GALLEY_INLINE Int load_u8(const uint8_t* p) {
  return Int{{(IntPart)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}};
}
GALLEY_INLINE Int load_i8(const uint8_t* p) {
  return Int{{(IntPart)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}};
}
// Byte `code` of the table for each byte of codes below 16.
GALLEY_INLINE Int look_up(const uint8_t* table, const Int& codes) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return Int{{(IntPart)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes),
                                           (__m512i)codes.part[0])}};
}
// Number `code` of the table for each lane.
GALLEY_INLINE Float look_up(const float* table, const Int& codes) {
  return Float{{_mm512_i32gather_ps((__m512i)codes.part[0], table, 4)}};
}
// E4M3, by way of f16, whose exponent has a bias 8 larger.
GALLEY_INLINE Float float8(const float*, const Int& codes) {
  const Int half = shift_left<7>(codes & all(127)) | shift_left<8>(codes & all(128));
  const Float value =
      Float{{_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)half.part[0]))}} * all(256.0f);
  const Int is_nan = (codes & all(127)) >= all(127);
  return as_float(as_int(value) | (is_nan & all(0x7fc00000)));
}
// The same of sixteen numbers, by the lowest four bits of each lane.
GALLEY_INLINE Float look_up16(const float* table, const Int& codes) {
  return Float{{_mm512_permutexvar_ps((__m512i)codes.part[0], _mm512_loadu_ps(table))}};
}
#elif GALLEY_PARTS == 2
GALLEY_INLINE Int load_u8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return Int{{(IntPart)_mm256_cvtepu8_epi32(bytes),
              (IntPart)_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))}};
}
GALLEY_INLINE Int load_i8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return Int{{(IntPart)_mm256_cvtepi8_epi32(bytes),
              (IntPart)_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))}};
}
GALLEY_INLINE Int look_up(const uint8_t* table, const Int& codes) {
  const __m256i bytes =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  Int r;
  GALLEY_EACH_PART r.part[i] = (IntPart)_mm256_shuffle_epi8(bytes, (__m256i)codes.part[i]);
  return r;
}
GALLEY_INLINE Float look_up(const float* table, const Int& codes) {
  Float r;
  GALLEY_EACH_PART r.part[i] = _mm256_i32gather_ps(table, (__m256i)codes.part[i], 4);
  return r;
}
GALLEY_INLINE Float look_up16(const float* table, const Int& codes) {
  const __m256 first = _mm256_loadu_ps(table), second = _mm256_loadu_ps(table + 8);
  Float r;
  GALLEY_EACH_PART {
    const __m256i code = (__m256i)codes.part[i];
    const __m256 low = _mm256_permutevar8x32_ps(first, code);
    const __m256 high = _mm256_permutevar8x32_ps(second, code);
    r.part[i] = _mm256_blendv_ps(low, high, (__m256)_mm256_slli_epi32(code, 28));
  }
  return r;
}
GALLEY_INLINE Float float8(const float* table, const Int& codes) { return look_up(table, codes); }
#else
GALLEY_INLINE Int load_u8(const uint8_t* p) {
  int32_t lane[kLanes];
  for (int i = 0; i < kLanes; i++) lane[i] = p[i];
  return load(lane);
}
GALLEY_INLINE Int load_i8(const uint8_t* p) {
  int32_t lane[kLanes];
  for (int i = 0; i < kLanes; i++) lane[i] = static_cast<int8_t>(p[i]);
  return load(lane);
}
GALLEY_INLINE Int look_up(const uint8_t* table, const Int& codes) {
  uint8_t byte[4 * kLanes];
  memcpy(byte, &codes, sizeof byte);
  for (uint8_t& b : byte) b = table[b];
  Int r;
  memcpy(&r, byte, sizeof r);
  return r;
}
GALLEY_INLINE Float look_up(const float* table, const Int& codes) {
  int32_t lane[kLanes];
  float value[kLanes];
  store(lane, codes);
  for (int i = 0; i < kLanes; i++) value[i] = table[lane[i]];
  return load(value);
}
GALLEY_INLINE Float look_up16(const float* table, const Int& codes) {
  return look_up(table, codes & all(15));
}
GALLEY_INLINE Float float8(const float* table, const Int& codes) { return look_up(table, codes); }
#endif

GALLEY_INLINE Float load_bf16_line(const uint8_t* p) {
#if GALLEY_PARTS == 1
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return as_float(shift_left<16>(Int{{(IntPart)_mm512_cvtepu16_epi32(halves)}}));
#else
  int32_t lane[kLanes];
  for (int i = 0; i < kLanes; i++) {
    uint16_t bits;
    memcpy(&bits, p + 2 * i, 2);
    lane[i] = bits;
  }
  return as_float(shift_left<16>(load(lane)));
#endif
}

struct ScaleAndMin {
  Float scale, min;
};

// Reads headers of a weight (linear.h): an entry's numbers for columns 16 * half .. + 15.
struct HeaderReader {
  Scale kind;
  int64_t zero_bits;
  bool fractions;  // in place of mins
  int64_t line_bytes, mins_at, zeros_at, zero_line_bytes;
  int64_t factors, nested_codes_at;
  const float* nested_levels;

  // `data` is the weight's, where its scales may be nested.
  explicit HeaderReader(const WeightLayout& w, const uint8_t* data = nullptr)
      : kind(w.scale), zero_bits(w.zero_bits()), fractions(w.offset == Offset::fractions),
        line_bytes(w.scale_line_bytes()), mins_at(w.entries() * w.scale_line_bytes()), zeros_at(w.zeros_at()),
        zero_line_bytes(w.zero_line_bytes()), factors(w.factors()), nested_codes_at(w.nested_codes_at()),
        nested_levels(data ? reinterpret_cast<const float*>(data) + (1 << w.bits()) : nullptr) {}
  // Of headers of repacked blocks.
  static HeaderReader repacked(const WeightLayout& w) {
    HeaderReader reader(w);
    reader.kind = Scale::f32, reader.zero_bits = 8, reader.fractions = false;
    reader.line_bytes = kPanel * 4, reader.mins_at = w.parts() * kPanel * 4;
    reader.zeros_at = w.repacked_zeros_at(), reader.zero_line_bytes = kPanel;
    return reader;
  }
  template <bool kMin>
  GALLEY_INLINE ScaleAndMin scales(const uint8_t* header, int64_t entry, int half) const {
    return scales<kMin>(upper<kMin>(header, half), header, entry, half);
  }
  // What all scales, and mins, of a header are multiplied with, if they have two levels.
  template <bool kMin> GALLEY_INLINE ScaleAndMin upper(const uint8_t* header, int half) const {
    if (kMin && (kind == Scale::u6 || kind == Scale::u4)) {
      return {load_f16(header + half * kLanes * 2), load_f16(header + kPanel * 2 + half * kLanes * 2)};
    }
    if (!kMin && (kind == Scale::i8 || kind == Scale::s6)) {
      return {load_f16(header + half * kLanes * 2), zero()};
    }
    if (!kMin && kind == Scale::e4m3) return {load(reinterpret_cast<const float*>(header) + half * kLanes), zero()};
    return {zero(), zero()};
  }
  template <bool kMin>
  GALLEY_INLINE ScaleAndMin scales(const ScaleAndMin& upper, const uint8_t* header, int64_t entry,
                                   int half) const {
    if (kMin && kind == Scale::u6) return six(upper, header, entry, half);
    if (kMin && kind == Scale::u4) return four(upper, header, entry, half);
    if (!kMin && kind == Scale::i8) {
      const uint8_t* bytes = header + kPanel * 2 + entry * kPanel + half * kLanes;
      return {upper.scale * to_float(load_i8(bytes)), zero()};
    }
    if (!kMin && kind == Scale::s6) return {upper.scale * signed_six(header, entry, half), zero()};
    if (!kMin && kind == Scale::e4m3) {
      const uint8_t* bytes = header + kPanel * 4 + entry * kPanel + half * kLanes;
      return {upper.scale * float8_number(load_u8(bytes)), zero()};
    }
    if (!kMin && kind == Scale::nested) return {nested(header, entry, half), zero()};
    const uint8_t* at = header + entry * line_bytes;
    const Float scale = line(at, half);
    if (!kMin) return {scale, zero()};
    const Float min = line(at + mins_at, half);
    return {scale, fractions ? zero() - scale * min : min};
  }
  GALLEY_INLINE Int zeros(const uint8_t* header, int64_t entry, int half) const {
    const uint8_t* at = header + zeros_at + entry * zero_line_bytes;
    if (zero_bits == 8) return load_u8(at + half * kLanes);
    if (zero_bits == 4) {
      const Int both = load_u8(at);
      return half == 0 ? both & all(15) : shift_right<4>(both);
    }
    uint8_t twice[kLanes];
    memcpy(twice, at, 8), memcpy(twice + 8, at, 8);
    Int four = load_u8(twice);
    if (half) four = shift_right<4>(four);
    return select(lane_numbers() < all(8), four, shift_right<2>(four)) & all(3);
  }

  // 6-bit scales and mins, times f16.
  static GALLEY_INLINE ScaleAndMin six(const ScaleAndMin& upper, const uint8_t* header, int64_t entry,
                                       int half) {
    const uint8_t* bytes = header + 2 * kPanel * 2 + entry % 4 * kPanel + half * kLanes;
    const Int low = load_u8(bytes), mid = load_u8(bytes + 4 * kPanel);
    Int scale = low & all(63), min = mid & all(63);
    if (entry >= 4) {
      const Int high = load_u8(bytes + 8 * kPanel);
      scale = (high & all(15)) | (shift_right<2>(low) & all(48));
      min = shift_right<4>(high) | (shift_right<2>(mid) & all(48));
    }
    return {upper.scale * to_float(scale), upper.min * to_float(min)};
  }

 private:
  GALLEY_INLINE Float line(const uint8_t* at, int half) const {
    if (kind == Scale::f16) return load_f16(at + half * kLanes * 2);
    if (kind == Scale::f32) return load(reinterpret_cast<const float*>(at) + half * kLanes);
    if (kind == Scale::e8m0) return power(load_u8(at + half * kLanes));
    if (kind == Scale::halves) return all(float_at(at + half * 4));
    return load_bf16_line(at + half * kLanes * 2);
  }
  // 2^(e - 128), of which the two smallest are subnormal.
  static GALLEY_INLINE Float power(const Int& e) {
    const Int normal = shift_left<23>(e + all(-1));
    const Int subnormal = select(e >= all(1), all(0x00400000), all(0x00200000));
    return as_float(select(e >= all(2), normal, subnormal));
  }
  // E4M3 without NaN.
  static GALLEY_INLINE Float float8_number(const Int& code) {
    const Int magnitude = code & all(127);
    const Float normal = as_float(shift_left<20>(magnitude) + all(120 << 23));
    const Float subnormal = to_float(magnitude) * all(0.001953125f);  // 2^-9
    const Int value = select(magnitude >= all(8), as_int(normal), as_int(subnormal));
    return as_float(value | shift_left<24>(code & all(128)));
  }
  // 4-bit scales and mins, times f16.
  static GALLEY_INLINE ScaleAndMin four(const ScaleAndMin& upper, const uint8_t* header, int64_t entry,
                                        int half) {
    const Int both = load_u8(header + 2 * kPanel * 2 + entry * kPanel + half * kLanes);
    return {upper.scale * to_float(both & all(15)), upper.min * to_float(shift_right<4>(both))};
  }
  GALLEY_INLINE Float nested(const uint8_t* header, int64_t entry, int half) const {
    const float* factor = reinterpret_cast<const float*>(header + kPanel * 4) + half * factors;
    const Int place = words(header + half * kLanes * 4) + all(static_cast<int32_t>(entry));
    const Int code = load_u8(header + nested_codes_at + entry * kPanel + half * kLanes);
    return look_up(nested_levels, code) * look_up(factor, shift_right<8>(place)) + all(factor[factors - 1]);
  }
  // 6-bit scales around 32.
  static GALLEY_INLINE Float signed_six(const uint8_t* header, int64_t entry, int half) {
    const uint8_t* bytes = header + kPanel * 2 + half * kLanes;
    Int scale;
    if (entry < 12) {
      scale = load_u8(bytes + entry * kPanel) & all(63);
    } else {
      const uint8_t* first = bytes + (entry - 12) * kPanel;
      scale = shift_right<6>(load_u8(first)) | (shift_right<4>(load_u8(first + 4 * kPanel)) & all(12)) |
              (shift_right<2>(load_u8(first + 8 * kPanel)) & all(48));
    }
    return to_float(scale + all(-32));
  }
};

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
    _Pragma("GCC unroll 6") for (int i = 0; i < kBases; i++) base[i] = first + 3 * i * stride;
  }
  GALLEY_INLINE const uint8_t* operator[](int r) const { return base[r / 3] + r % 3 * stride; }
  GALLEY_INLINE void advance(int64_t bytes) {
    _Pragma("GCC unroll 6") for (int i = 0; i < kBases; i++) {
      base[i] += bytes;
      asm("" : "+r"(base[i]));
    }
  }
};

}  // namespace GALLEY_VARIANT
}  // namespace galley
