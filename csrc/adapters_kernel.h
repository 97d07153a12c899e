// Kernels of adapters.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "adapters.h"
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

GALLEY_INLINE Float load_values(const uint8_t* p, bool bf16, int64_t i, int n) {
  if (!bf16) return load_part(reinterpret_cast<const float*>(p) + i, n);
  return load_bf16_part(reinterpret_cast<const uint16_t*>(p) + i, n);
}
// 32 bf16 numbers, two a lane, or the first n of them.
GALLEY_INLINE Int load_pairs(const uint8_t* p, int64_t i) {
  return load(reinterpret_cast<const int32_t*>(p + 2 * i));
}
GALLEY_INLINE Int load_pairs_part(const uint8_t* p, int64_t i, int64_t n) {
  Int r{};
  memcpy(&r, p + 2 * i, n * 2);
  return r;
}

// R rows of A with X rows of x. kPairs: both are bf16.
template <int R, int X, bool kPairs>
GALLEY_INLINE void dots(const ShrinkJob& job, const uint8_t* a, const uint8_t* const* x,
                        float* const* out, int64_t first) {
  const int64_t a_bytes = job.k * (job.bf16 ? 2 : 4);
  Float acc[R][X] = {};
  if (kPairs) {
    int64_t i = 0;
    for (; i + 32 <= job.k; i += 32) {
      Int values[R];
      for (int r = 0; r < R; r++) {
        values[r] = load_pairs(a + r * a_bytes, i);
        __builtin_prefetch(a + (r + R) * a_bytes + 2 * i);  // the rows of the next call
      }
      for (int j = 0; j < X; j++) {
        const Int xs = load_pairs(x[j], i);
        for (int r = 0; r < R; r++) acc[r][j] = dot_bf16(acc[r][j], values[r], xs);
      }
    }
    if (i < job.k) {
      for (int j = 0; j < X; j++) {
        const Int xs = load_pairs_part(x[j], i, job.k - i);
        for (int r = 0; r < R; r++) {
          acc[r][j] = dot_bf16(acc[r][j], load_pairs_part(a + r * a_bytes, i, job.k - i), xs);
        }
      }
    }
  } else {
    const bool x_bf16 = job.x_kind == Kind::bf16;
    for (int64_t i = 0; i < job.k; i += kLanes) {
      const int n = job.k - i < kLanes ? static_cast<int>(job.k - i) : kLanes;
      Float values[R];
      for (int r = 0; r < R; r++) values[r] = load_values(a + r * a_bytes, job.bf16, i, n);
      for (int j = 0; j < X; j++) {
        const Float xs = load_values(x[j], x_bf16, i, n);
        for (int r = 0; r < R; r++) acc[r][j] = fma(values[r], xs, acc[r][j]);
      }
    }
  }
  for (int j = 0; j < X; j++) {
    for (int r = 0; r < R; r++) out[j][first + r] = sum(acc[r][j]) * job.scale;
  }
}

template <int R, bool kPairs>
void dots_of_rows(const ShrinkJob& job, const uint8_t* a, const uint8_t* const* x, int64_t rows,
                  float* const* out, int64_t first) {
  int64_t j = 0;
  for (; j + 4 <= rows; j += 4) dots<R, 4, kPairs>(job, a, x + j, out + j, first);
  for (; j + 2 <= rows; j += 2) dots<R, 2, kPairs>(job, a, x + j, out + j, first);
  for (; j < rows; j++) dots<R, 1, kPairs>(job, a, x + j, out + j, first);
}

template <bool kPairs>
void shrink(const ShrinkJob& job, int64_t ranks, const uint8_t* const* x, int64_t rows,
            float* const* out) {
  const int64_t a_bytes = job.k * (job.bf16 ? 2 : 4);
  int64_t r = 0;
  for (; r + 4 <= ranks; r += 4) {
    dots_of_rows<4, kPairs>(job, job.a + r * a_bytes, x, rows, out, r);
  }
  for (; r < ranks; r++) dots_of_rows<1, kPairs>(job, job.a + r * a_bytes, x, rows, out, r);
}

void adapter_shrink(const ShrinkJob& job, int64_t ranks, const uint8_t* const* x, int64_t rows,
                    float* const* out) {
  if (job.bf16 && job.x_kind == Kind::bf16) return shrink<true>(job, ranks, x, rows, out);
  shrink<false>(job, ranks, x, rows, out);
}

// P panels for X rows: several, because a row's sum is one chain of additions.
template <int P, int X, bool kBf16>
GALLEY_INLINE void panel_rows(const ExpandJob& job, int64_t panel, const float* const* s,
                              float* const* out) {
  const int64_t panel_bytes = job.rank * kLanes * (kBf16 ? 2 : 4);
  const uint8_t* b = job.b + panel * panel_bytes;
  Float acc[P][X] = {};
  for (int64_t r = 0; r < job.rank; r++) {
    Float values[P];
    for (int p = 0; p < P; p++) {
      const uint8_t* from = b + p * panel_bytes;
      values[p] = load_values(from, kBf16, r * kLanes, kLanes);
      __builtin_prefetch(from + P * panel_bytes + r * kLanes * (kBf16 ? 2 : 4));
    }
    for (int j = 0; j < X; j++) {
      const Float low = all(s[j][r]);
      for (int p = 0; p < P; p++) acc[p][j] = fma(values[p], low, acc[p][j]);
    }
  }
  for (int p = 0; p < P; p++) {
    const int64_t column = (panel + p) * job.step, left = job.n - (panel + p) * kLanes;
    const int n = left < kLanes ? static_cast<int>(left) : kLanes;
    for (int j = 0; j < X; j++) {
      float* y = out[j] + column;
      store_part(y, load_part(y, n) + acc[p][j], n);
    }
  }
}

template <int P, bool kBf16>
GALLEY_INLINE void panels_rows(const ExpandJob& job, int64_t panel, const float* const* s,
                               int64_t rows, float* const* out) {
  int64_t j = 0;
  for (; j + 4 <= rows; j += 4) panel_rows<P, 4, kBf16>(job, panel, s + j, out + j);
  for (; j + 2 <= rows; j += 2) panel_rows<P, 2, kBf16>(job, panel, s + j, out + j);
  for (; j < rows; j++) panel_rows<P, 1, kBf16>(job, panel, s + j, out + j);
}

template <bool kBf16>
void expand(const ExpandJob& job, int64_t first, int64_t panels, const float* const* s,
            int64_t rows, float* const* out) {
  int64_t p = first;
  const int64_t last = first + panels;
  for (; p + 4 <= last; p += 4) panels_rows<4, kBf16>(job, p, s, rows, out);
  for (; p < last; p++) panels_rows<1, kBf16>(job, p, s, rows, out);
}

void adapter_expand(const ExpandJob& job, int64_t first, int64_t panels, const float* const* s,
                    int64_t rows, float* const* out) {
  if (job.bf16) return expand<true>(job, first, panels, s, rows, out);
  expand<false>(job, first, panels, s, rows, out);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
