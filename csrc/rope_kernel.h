// Definitions for rope.h; compiled once per instruction set (variants.h).
#pragma once
#include "math_lanes.h"
#include "norm.h"
#include "rope.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kPageTokens = 16;

// out = x rotated by the angles of one position; elements from rot_dim on are copied.
GALLEY_INLINE void rotate(const RopeShape& s, const float* x, const float* table, float* out) {
  const int64_t half = s.rot_dim / 2;
  const float* cos = table;
  const float* sin = table + half;
  if (s.style == RopeStyle::interleaved) {
    for (int64_t i = 0; i < half; i++) {
      const float a = x[2 * i], b = x[2 * i + 1];
      out[2 * i] = fma(a, cos[i], -(b * sin[i]));
      out[2 * i + 1] = fma(b, cos[i], a * sin[i]);
    }
  } else {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {  // without masks, which would cost more than the arithmetic
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
  for (int64_t i = s.rot_dim; i < s.head_dim; i++) out[i] = x[i];
}

// One head's vector, normalised where a weight is given, then rotated.
GALLEY_INLINE const float* head_vector(const RopeShape& s, const float* x, const float* weight,
                                       const float* table, float* scratch) {
  float* rotated = scratch;
  if (weight) {
    float* normed = scratch + s.head_dim;
    rms_norm_row(const_cast<float*>(x), nullptr, weight, s.head_dim, s.eps, normed);
    x = normed;
  }
  rotate(s, x, table, rotated);
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

// A token's K is a column of the page, its V a row (f32) or every other element of one (bf16).
GALLEY_INLINE void write_k(const float* x, int64_t n, bool is_f32, uint8_t* k, int slot) {
  if (is_f32) {
    float* column = reinterpret_cast<float*>(k) + slot;
    for (int64_t i = 0; i < n; i++) column[i * kPageTokens] = x[i];
    return;
  }
  int32_t lane[kLanes];
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

GALLEY_INLINE void write_v(const float* x, int64_t n, bool is_f32, uint8_t* v, int slot) {
  if (is_f32) {
    memcpy(v + slot * n * sizeof(float), x, n * sizeof(float));
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

// Prefetches what a run's first token reads and writes: a piece of every line of K, a row of V.
GALLEY_INLINE void prefetch_run(const RopeShape& s, const RopeRun& run) {
  constexpr int64_t kLine = 64;
  const int64_t width = (s.heads + 2 * s.kv_heads) * s.head_dim;
  const int64_t row_bytes = s.head_dim * 4, half_bytes = row_bytes * (s.kv_is_f32 ? 16 : 8);
  const int64_t v = half_bytes + (s.kv_is_f32 ? run.slot : run.slot / 2) * row_bytes;
  for (int64_t i = 0; i < width; i += kLanes) __builtin_prefetch(run.qkv + i);
  for (int64_t h = 0; h < s.kv_heads; h++) {
    const uint8_t* head = run.page + 2 * h * half_bytes;
    for (int64_t i = 0; i < half_bytes; i += kLine) __builtin_prefetch(head + i, 1);
    for (int64_t i = v; i < v + row_bytes; i += kLine) __builtin_prefetch(head + i, 1);
  }
}

void rope_kv_run(const RopeShape& s, const RopeRun& run, const RopeRun* next, float* scratch) {
  if (next) prefetch_run(s, *next);
  const int64_t dim = s.head_dim, width = (s.heads + 2 * s.kv_heads) * dim;
  const int64_t half_bytes = kPageTokens * dim * (s.kv_is_f32 ? 4 : 2);
  const int64_t q_head_bytes = dim * (s.q_is_f32 ? 4 : 2);
  for (int t = 0; t < run.count; t++) {
    const float* q = run.qkv + t * width;
    const float* k = q + s.heads * dim;
    const float* v = k + s.kv_heads * dim;
    const float* table = run.table + t * s.rot_dim;
    for (int64_t h = 0; h < s.heads; h++) {
      const float* x = head_vector(s, q + h * dim, s.q_weight, table, scratch);
      store_vector(x, dim, s.q_is_f32, run.q_out + (t * s.heads + h) * q_head_bytes);
    }
    for (int64_t h = 0; h < s.kv_heads; h++) {
      uint8_t* head = run.page + 2 * h * half_bytes;
      const float* x = head_vector(s, k + h * dim, s.k_weight, table, scratch);
      write_k(x, dim, s.kv_is_f32, head, run.slot + t);
      write_v(v + h * dim, dim, s.kv_is_f32, head + half_bytes, run.slot + t);
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
