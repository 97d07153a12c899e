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
GALLEY_INLINE Float low_half(const Int& pairs) { return as_float(shift_left<16>(pairs)); }
GALLEY_INLINE Float high_half(const Int& pairs) { return as_float(pairs & all(-65536)); }
GALLEY_INLINE Int load_pairs_part(const uint8_t* p, int64_t i, int64_t n) {
  Int r{};
  memcpy(&r, p + 2 * i, n * 2);
  return r;
}

constexpr int kAddedRows = 6;  // that go through a panel of B together

// R rows of A with X rows of x. kPairs: both are bf16.
template <int R, int X, bool kPairs>
GALLEY_INLINE void dots(const ShrinkJob& job, const uint8_t* a, const uint8_t* const* x,
                        float* const* out, int64_t first) {
  const int64_t a_bytes = job.k * (job.bf16 ? 2 : 4);
  Float acc[X][R] = {};
  if (kPairs) {
    // As floats, of even and of odd columns: two FMAs take less time than dot_bf16.
    auto add = [&](auto pairs_at, int64_t i) __attribute__((always_inline)) {
      Float even[R], odd[R];
      for (int r = 0; r < R; r++) {
        const Int pairs = pairs_at(a + r * a_bytes, i);
        even[r] = low_half(pairs), odd[r] = high_half(pairs);
      }
      for (int j = 0; j < X; j++) {
        const Int pairs = pairs_at(x[j], i);
        const Float x_even = low_half(pairs), x_odd = high_half(pairs);
        for (int r = 0; r < R; r++) {
          acc[j][r] = fma(odd[r], x_odd, fma(even[r], x_even, acc[j][r]));
        }
      }
    };
    int64_t i = 0;
    for (; i + 32 <= job.k; i += 32) {
      for (int r = 0; r < R; r++) {
        __builtin_prefetch(a + (r + R) * a_bytes + 2 * i);  // the rows of the next call
      }
      add([](const uint8_t* p, int64_t at) { return load_pairs(p, at); }, i);
    }
    const int64_t left = job.k - i;
    if (left) add([left](const uint8_t* p, int64_t at) { return load_pairs_part(p, at, left); }, i);
  } else {
    const bool x_bf16 = job.x_kind == Kind::bf16;
    for (int64_t i = 0; i < job.k; i += kLanes) {
      const int n = job.k - i < kLanes ? static_cast<int>(job.k - i) : kLanes;
      Float values[R];
      for (int r = 0; r < R; r++) values[r] = load_values(a + r * a_bytes, job.bf16, i, n);
      for (int j = 0; j < X; j++) {
        const Float xs = load_values(x[j], x_bf16, i, n);
        for (int r = 0; r < R; r++) acc[j][r] = fma(values[r], xs, acc[j][r]);
      }
    }
  }
  alignas(64) float sums[X * R];
  sum_each<X * R>(acc[0], sums);
  for (int j = 0; j < X; j++) {
    for (int r = 0; r < R; r++) out[j][first + r] = sums[j * R + r] * job.scale;
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

// y + sum, with the gains and shifts of a panel if there are any.
GALLEY_INLINE Float added(const Float& y, const Float& sum, const float* affine) {
  return affine ? fma(y, load(affine), sum) + load(affine + kLanes) : y + sum;
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
    const float* affine = job.affine ? job.affine + (panel + p) * 2 * kLanes : nullptr;
    for (int j = 0; j < X; j++) {
      float* y = out[j] + column;
      store_part(y, added(load_part(y, n), acc[p][j], affine), n);
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

// Of one adapter: panels of B for the halves of a panel of the layer's weight.
struct HalfPanels {
  const uint8_t* b[2];
  const float* affine[2];
  int64_t rank[2], low[2];  // low: the first number of B's input in a row of `low`
};

// P panels, from half h on and of equal rank, for X rows: y[j][16 p ..] of panel p.
template <int P, int X, bool kBf16>
GALLEY_INLINE void add_rows(const HalfPanels& of, int h, const float* const* low, float* const* y) {
  Float acc[P][X] = {};
  for (int64_t r = 0; r < of.rank[h]; r++) {
    for (int p = 0; p < P; p++) {
      const Float values = load_values(of.b[h + p], kBf16, r * kLanes, kLanes);
      for (int j = 0; j < X; j++) {
        acc[p][j] = fma(values, all(low[j][of.low[h + p] + r]), acc[p][j]);
      }
    }
  }
  for (int p = 0; p < P; p++) {
    for (int j = 0; j < X; j++) {
      float* at = y[j] + (h + p) * kLanes;
      store(at, added(load(at), acc[p][j], of.affine[h + p]));
    }
  }
}

template <int P, bool kBf16>
void add_some_rows(const HalfPanels& of, int h, const float* const* low, float* const* y,
                   int rows) {
  switch (rows) {
    case 1: return add_rows<P, 1, kBf16>(of, h, low, y);
    case 2: return add_rows<P, 2, kBf16>(of, h, low, y);
    case 3: return add_rows<P, 3, kBf16>(of, h, low, y);
    case 4: return add_rows<P, 4, kBf16>(of, h, low, y);
    case 5: return add_rows<P, 5, kBf16>(of, h, low, y);
    default: return add_rows<P, kAddedRows, kBf16>(of, h, low, y);
  }
}

template <bool kBf16>
HalfPanels half_panels(const AdapterAddend& addend, int64_t panel, int32_t place) {
  HalfPanels of{};
  for (int h = 0; h < 2; h++) {
    const AdapterAddend::Half& half = addend.halves[2 * panel + h];
    if (half.part < 0) continue;
    const AdapterPart& part = addend.parts[half.part];
    const AdapterInput in = addend.table.input(place, addend.first_input + part.input);
    const int64_t output = addend.first_output + half.part;
    const int64_t bytes = in.rank * kLanes * (kBf16 ? 2 : 4);
    const float* affine = addend.table.affine(place, output);
    of.rank[h] = in.rank, of.low[h] = part.input * addend.max_rank;
    of.b[h] = addend.table.output(place, output) + half.panel * bytes;
    of.affine[h] = affine ? affine + half.panel * 2 * kLanes : nullptr;
    // The next panel of the weight has the same half of the next panel of B, or the one after it.
    const int64_t ahead = part.step == kAdapterPanel ? 2 * bytes : bytes;
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(of.b[h] + ahead + at);
  }
  return of;
}

template <bool kBf16>
void add_panel(const AdapterAddend& addend, int64_t panel, int64_t row, int64_t rows, float* y) {
  const AdapterRows& in_step = *addend.rows;
  const auto last = static_cast<int32_t>(row + rows);
  uint64_t done[4] = {};  // of up to 256 rows
  for (int64_t first = 0; first < rows; first++) {
    auto next = static_cast<int32_t>(row + first);
    const int32_t place = in_step.place[next];
    if (place == AdapterRows::kNone || done[first / 64] >> (first % 64) & 1) continue;
    const HalfPanels of = half_panels<kBf16>(addend, panel, place);
    while (next != AdapterRows::kNone && next < last) {
      const float* low[kAddedRows];
      float* at[kAddedRows];
      int count = 0;
      while (count < kAddedRows && next != AdapterRows::kNone && next < last) {
        const int64_t r = next - row;
        done[r / 64] |= uint64_t{1} << (r % 64);
        low[count] = addend.low + next * addend.low_columns, at[count++] = y + r * 2 * kLanes;
        next = in_step.next[next];
      }
      if (of.rank[0] == of.rank[1]) {
        if (of.rank[0]) add_some_rows<2, kBf16>(of, 0, low, at, count);
        continue;
      }
      for (int h = 0; h < 2; h++) {
        if (of.rank[h]) add_some_rows<1, kBf16>(of, h, low, at, count);
      }
    }
  }
}

void adapter_add(const AdapterAddend& addend, int64_t panel, int64_t row, int64_t rows, float* y) {
  if (addend.table.bf16) return add_panel<true>(addend, panel, row, rows, y);
  add_panel<false>(addend, panel, row, rows, y);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
