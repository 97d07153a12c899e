// Writing a token's K and V into a page of the cache (attention_layout.h).
#pragma once
#include "kv_format.h"
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kPageTokens = 16;

// Largest magnitude of a code.
GALLEY_INLINE float largest_code(KvKind kind) {
  return kind == KvKind::e4m3 ? 448.0f : kind == KvKind::e5m2 ? 57344.0f : 127.0f;
}

// Codes of a minifloat, rounded to nearest even; beyond `largest` that, NaN stays NaN.
template <int mantissa_bits, int bias>
GALLEY_INLINE Int minifloat_codes(const Float& magnitude, float largest) {
  constexpr int kDropped = 23 - mantissa_bits;
  const Float a = min(magnitude, all(largest));
  const Int bits = as_int(a);
  const Int odd = shift_right<kDropped>(bits) & all(1);
  const Int rounded = bits + all((1 << (kDropped - 1)) - 1) + odd;
  const Int normal = shift_right<kDropped>(rounded) - all((127 - bias) << mantissa_bits);
  // Below the smallest normal number all are multiples of one step; adding 1.5 * 2^23 rounds.
  const float steps = static_cast<float>(1ll << (bias - 1 + mantissa_bits));
  const Int small = as_int(a * all(steps) + all(12582912.0f)) & all(0x7f);
  const Int code = select(a < all(static_cast<float>(1 << mantissa_bits) / steps), small, normal);
  return select(is_nan(magnitude), all(0x7f), code);
}

// The code of each lane, in its low byte.
GALLEY_INLINE Int kv_codes(KvKind kind, const Float& x) {
  const Int bits = as_int(x);
  const Int sign = shift_right<24>(bits) & all(0x80);
  const Float magnitude = as_float(bits & all(0x7fffffff));
  if (kind == KvKind::e4m3) return minifloat_codes<3, 7>(magnitude, 448.0f) | sign;
  if (kind == KvKind::e5m2) return minifloat_codes<2, 15>(magnitude, 57344.0f) | sign;
  const Float most = min(magnitude, all(127.0f));
  return (as_int(most + all(12582912.0f)) & all(0x7f)) | sign;
}

// The factor that brings n elements of a token's K or V to the range of codes. Of `token_scales`
// the scale is chosen by the largest element and stored.
GALLEY_INLINE float code_factor(const KvFormat& f, float layer_scale, const float* x, int64_t n,
                                uint8_t* scales, int slot) {
  if (!f.token_scales) return 1.0f / layer_scale;
  Float most = zero();
  Int nan = all(0);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Float lanes = load_part(x + i, part);
    most = max(as_float(as_int(lanes) & all(0x7fffffff)), most);
    nan = nan | is_nan(lanes);
  }
  const float largest = max_lane(most), top = largest_code(f.kind);
  float scale = largest / top, factor = top / largest;
  if (!(largest >= 1e-30f)) scale = factor = 0.0f;  // of zeros
  if (mask_bits(nan) != 0) scale = __builtin_nanf("");
  memcpy(scales + slot * sizeof scale, &scale, sizeof scale);
  return factor;
}

// n elements of a token's K: a column of the page. Codes are those of x * factor.
GALLEY_INLINE void write_k(const float* x, int64_t n, KvKind kind, float factor, uint8_t* k,
                           int slot) {
  if (kind == KvKind::f32) {
    float* column = reinterpret_cast<float*>(k) + slot;
    for (int64_t i = 0; i < n; i++) column[i * kPageTokens] = x[i];
    return;
  }
  int32_t lane[kLanes];
  if (kind != KvKind::bf16) {
    uint8_t* column = k + 2 * slot;
    for (int64_t i = 0; i < n; i += kLanes) {
      const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
      store(lane, kv_codes(kind, load_part(x + i, part) * all(factor)));
      for (int j = 0; j < part; j++) {
        column[(i + j) / 2 * 2 * kPageTokens + j % 2] = static_cast<uint8_t>(lane[j]);
      }
    }
    return;
  }
  uint32_t* column = reinterpret_cast<uint32_t*>(k) + slot;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    store(lane, to_bf16(load_part(x + i, part)));
    for (int j = 0; j < part; j += 2) {
      column[(i + j) / 2 * kPageTokens] =
          static_cast<uint32_t>(lane[j]) | static_cast<uint32_t>(lane[j + 1]) << 16;
    }
  }
}

// A token's V is a row of the page (f32), or every other element of one.
GALLEY_INLINE void write_v(const float* x, int64_t n, KvKind kind, float factor, uint8_t* v,
                           int slot) {
  if (kind == KvKind::f32) {
    memcpy(v + slot * n * sizeof(float), x, n * sizeof(float));
    return;
  }
  if (kind != KvKind::bf16) {
    int32_t lane[kLanes];
    uint8_t* row = v + slot / 2 * 2 * n + slot % 2;
    for (int64_t i = 0; i < n; i += kLanes) {
      const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
      store(lane, kv_codes(kind, load_part(x + i, part) * all(factor)));
      for (int j = 0; j < part; j++) row[2 * (i + j)] = static_cast<uint8_t>(lane[j]);
    }
    return;
  }
  int32_t* row = reinterpret_cast<int32_t*>(v) + slot / 2 * n;
  const bool odd = slot % 2 != 0;
  const Int keep = all(odd ? 0x0000ffff : static_cast<int32_t>(0xffff0000u));
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Int value = to_bf16(load_part(x + i, part));
    const Int neighbour = load_part(row + i, part) & keep;
    store_part(row + i, neighbour | (odd ? shift_left<16>(value) : value), part);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
