// Definitions for rope.h; compiled once per instruction set (variants.h).
#pragma once
#include "exchange_lanes.h"
#include "kv_lanes.h"
#include "norm.h"
#include "rope.h"

namespace galley {
namespace GALLEY_VARIANT {

// out = x rotated by the angles of one position; elements from rot_dim on are copied.
GALLEY_INLINE void rotate(const Rotation& r, const float* x, int32_t position, float* out) {
  const int64_t half = r.rot_dim / 2;
  const float* cos = r.table + position * r.rot_dim;
  const float* sin = cos + half;
  if (r.style == RopeStyle::interleaved) {
    for (int64_t i = 0; i < half; i++) {
      const float a = x[2 * i], b = x[2 * i + 1];
      out[2 * i] = fma(a, cos[i], -(b * sin[i]));
      out[2 * i + 1] = fma(b, cos[i], a * sin[i]);
    }
  } else {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {  // no masks: they cost more than the arithmetic
      const Float a = load(x + i), b = load(x + half + i), c = load(cos + i), d = load(sin + i);
      store(out + i, fma(a, c, zero() - b * d));
      store(out + half + i, fma(b, c, a * d));
    }
    if (i < half) {
      const int n = static_cast<int>(half - i);
      const Float a = load_part(x + i, n), b = load_part(x + half + i, n);
      const Float c = load_part(cos + i, n), d = load_part(sin + i, n);
      store_part(out + i, fma(a, c, zero() - b * d), n);
      store_part(out + half + i, fma(b, c, a * d), n);
    }
  }
  for (int64_t i = r.rot_dim; i < r.head_dim; i++) out[i] = x[i];
}

// One head's vector, normalised where a weight is given, then rotated.
GALLEY_INLINE const float* head_vector(const RopeKvShape& s, const float* x, const float* weight,
                                       int32_t position, float* scratch) {
  float* rotated = scratch;
  if (weight) {
    float* normed = scratch + s.kv.head_dim;
    rms_norm_row(const_cast<float*>(x), nullptr, weight, s.kv.head_dim, s.eps, normed);
    x = normed;
  }
  rotate(s.rotation, x, position, rotated);
  return rotated;
}

GALLEY_INLINE void store_vector(const float* x, int64_t n, bool is_f32, void* out) {
  if (is_f32) {
    memcpy(out, x, n * sizeof(float));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(out);
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    store_bf16(to + i, load(x + i), load(x + i + kLanes));
  }
  for (; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    store_bf16_part(to + i, load_part(x + i, part), part);
  }
}

// n numbers of a row as floats; through `scratch` where they are bf16.
GALLEY_INLINE const float* as_floats(const uint8_t* x, int64_t n, bool is_f32, float* scratch) {
  if (is_f32) return reinterpret_cast<const float*>(x);
  const uint16_t* from = reinterpret_cast<const uint16_t*>(x);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int part = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    store_part(scratch + i, load_bf16_part(from + i, part), part);
  }
  return scratch;
}

// K, and V, of one head of a token.
GALLEY_INLINE void write_key(const KvShape& s, const float* x, uint8_t* k, int slot) {
  const KvFormat& f = s.format;
  const float factor = f.is_codes() ? code_factor(f, f.k_scale, x, s.head_dim,
                                                  k + kPageTokens * s.head_dim, slot)
                                    : 1.0f;
  write_k(x, s.head_dim, f.kind, factor, k, slot);
}
GALLEY_INLINE void write_value(const KvShape& s, const float* x, uint8_t* v, int slot) {
  const KvFormat& f = s.format;
  const float factor = f.is_codes() ? code_factor(f, f.v_scale, x, s.head_dim,
                                                  v + kPageTokens * s.head_dim, slot)
                                    : 1.0f;
  write_v(x, s.head_dim, f.kind, factor, v, slot);
}

// Prefetches what a run's first token reads and writes: a piece of every line of K, a row of V.
GALLEY_INLINE void prefetch_run(const RopeKvShape& s, const RopeKvRun& run) {
  constexpr int64_t kLine = 64;
  const int64_t width = (s.heads + 2 * s.kv.heads) * s.kv.head_dim;
  const KvFormat& format = s.kv.format;
  const int64_t half_bytes = s.kv.half_bytes();
  const int64_t row_bytes = s.kv.head_dim * (format.is_codes() ? 2 : 4);
  const int64_t v = half_bytes + (format.is_f32() ? run.kv.slot : run.kv.slot / 2) * row_bytes;
  for (int64_t i = 0; i < width; i += kLanes) __builtin_prefetch(run.qkv + i);
  for (int64_t h = 0; h < s.kv.heads; h++) {
    const uint8_t* head = run.kv.page + 2 * h * half_bytes;
    for (int64_t i = 0; i < half_bytes; i += kLine) __builtin_prefetch(head + i, 1);
    for (int64_t i = v; i < v + row_bytes; i += kLine) __builtin_prefetch(head + i, 1);
  }
}

void rope_row(const Rotation& r, const float* x, int64_t heads, int32_t position, bool out_is_f32,
              void* out, float* scratch) {
  const int64_t head_bytes = r.head_dim * (out_is_f32 ? 4 : 2);
  for (int64_t h = 0; h < heads; h++) {
    rotate(r, x + h * r.head_dim, position, scratch);
    store_vector(scratch, r.head_dim, out_is_f32, static_cast<uint8_t*>(out) + h * head_bytes);
  }
}

// Rows of bf16 are copied to caches of bf16 as they lie where the instruction set has masks.
#if GALLEY_PARTS == 1
constexpr bool kCopiesRows = true;

// K of a run of bf16 rows, as they lie: sixteen words of each token become a part of sixteen lines.
GALLEY_INLINE void copy_keys(const KvRun& run, const uint8_t* x, int64_t bytes, int64_t words,
                             uint8_t* k) {
  const __mmask16 tokens = static_cast<__mmask16>(((1u << run.count) - 1) << run.slot);
  for (int64_t word = 0; word < words; word += kLanes) {
    const int64_t left = words - word, part = left < kLanes ? left : kLanes;
    const __mmask16 lanes = static_cast<__mmask16>((1u << part) - 1);
    WordLine line[kLanes] = {};
    for (int t = 0; t < run.count; t++) {
      line[run.slot + t] = (WordLine)_mm512_maskz_loadu_epi32(lanes, x + t * bytes + 4 * word);
    }
    exchange<8>(line);
    exchange<4>(line);
    exchange<2>(line);
    exchange<1>(line);
    for (int64_t i = 0; i < part; i++) {
      _mm512_mask_storeu_epi32(k + (word + i) * 64, tokens, (__m512i)line[i]);
    }
  }
}

// V of two tokens of bf16, the first in an even slot: their elements take turns.
GALLEY_INLINE void copy_values(const uint8_t* x, int64_t bytes, int64_t dim, uint8_t* row) {
  for (int64_t i = 0; i < dim; i += kLanes) {
    const int64_t left = dim - i;
    const __mmask16 lanes = static_cast<__mmask16>(left < kLanes ? (1u << left) - 1 : 0xffff);
    const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, x + 2 * i));
    const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, x + bytes + 2 * i));
    _mm512_mask_storeu_epi32(row + 4 * i, lanes, even | _mm512_slli_epi32(odd, 16));
  }
}
#else
constexpr bool kCopiesRows = false;
inline void copy_keys(const KvRun&, const uint8_t*, int64_t, int64_t, uint8_t*) {}
inline void copy_values(const uint8_t*, int64_t, int64_t, uint8_t*) {}
#endif

void write_kv_run(const KvShape& s, const KvRun& run, const KvRows& k, const KvRows& v,
                  float* scratch) {
  const int64_t dim = s.head_dim, half_bytes = s.half_bytes();
  const int64_t k_bytes = dim * (k.is_f32 ? 4 : 2), v_bytes = dim * (v.is_f32 ? 4 : 2);
  const bool copies = kCopiesRows && s.format.kind == KvKind::bf16;
  const bool copies_k = copies && !k.is_f32, copies_v = copies && !v.is_f32;
  for (int64_t h = 0; h < s.heads; h++) {
    uint8_t *keys = run.page + 2 * h * half_bytes, *values = keys + half_bytes;
    const uint8_t *from_k = k.data + h * k_bytes, *from_v = v.data + h * v_bytes;
    if (copies_k) copy_keys(run, from_k, k.bytes, dim / 2, keys);
    for (int t = copies_k ? run.count : 0; t < run.count; t++) {
      write_key(s, as_floats(from_k + t * k.bytes, dim, k.is_f32, scratch), keys, run.slot + t);
    }
    for (int t = 0; t < run.count; t++) {
      const uint8_t* from = from_v + t * v.bytes;
      if (copies_v && (run.slot + t) % 2 == 0 && t + 1 < run.count) {
        copy_values(from, v.bytes, dim, values + (run.slot + t) / 2 * 4 * dim);
        t++;
      } else {
        write_value(s, as_floats(from, dim, v.is_f32, scratch), values, run.slot + t);
      }
    }
  }
}

void rope_kv_run(const RopeKvShape& s, const RopeKvRun& run, const RopeKvRun* next,
                 float* scratch) {
  if (next) prefetch_run(s, *next);
  const int64_t dim = s.kv.head_dim, width = (s.heads + 2 * s.kv.heads) * dim;
  const int64_t half_bytes = s.kv.half_bytes();
  const int64_t q_head_bytes = dim * (s.q_is_f32 ? 4 : 2);
  for (int t = 0; t < run.kv.count; t++) {
    const float* q = run.qkv + t * width;
    const float* k = q + s.heads * dim;
    const float* v = k + s.kv.heads * dim;
    const int32_t position = run.positions[t];
    for (int64_t h = 0; h < s.heads; h++) {
      const float* x = head_vector(s, q + h * dim, s.q_weight, position, scratch);
      store_vector(x, dim, s.q_is_f32, run.q_out + (t * s.heads + h) * q_head_bytes);
    }
    for (int64_t h = 0; h < s.kv.heads; h++) {
      uint8_t* head = run.kv.page + 2 * h * half_bytes;
      const float* x = head_vector(s, k + h * dim, s.k_weight, position, scratch);
      write_key(s.kv, x, head, run.kv.slot + t);
      write_value(s.kv, v + h * dim, head + half_bytes, run.kv.slot + t);
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
