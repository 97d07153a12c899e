// Kernels of adapters.cpp; compiled once per instruction set (variants.h).
//
// A row times panels of a matrix: the products of even and of odd k are summed apart, each in order.
#pragma once
#include "adapter_halves.h"
#include "adapters.h"
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

GALLEY_INLINE Int load_pairs(const void* p) { return load(static_cast<const int32_t*>(p)); }
GALLEY_INLINE Float low_half(const Int& pairs) { return as_float(shift_left<16>(pairs)); }
GALLEY_INLINE Float high_half(const Int& pairs) { return as_float(pairs & all(-65536)); }

constexpr int64_t kChunkPairs = 64;  // of a row that are floats at a time
constexpr int kAddedRows = 6;        // that go through a panel of B together

// Pairs [first, first + count) of a row as floats, with a zero after an odd end.
template <bool kFloats>
GALLEY_INLINE void widen(const uint8_t* x, int64_t k, int64_t first, int64_t count, float* even,
                         float* odd) {
  const int64_t left = k - 2 * first < 2 * count ? k - 2 * first : 2 * count;
  if (kFloats) {  // one after the other, odd = even + 1
    even[2 * count - 1] = 0;
    memcpy(even, x + 8 * first, 4 * left);
    return;
  }
  for (int64_t i = 0; i < count; i += kLanes) {
    Int pairs{};
    const int64_t bytes = 2 * left - 4 * i;
    if (bytes >= 64) {
      pairs = load_pairs(x + 4 * (first + i));
    } else {
      memcpy(&pairs, x + 4 * (first + i), bytes);
    }
    store(even + i, low_half(pairs)), store(odd + i, high_half(pairs));
  }
}

// sums[p][j] = panel w[p] · x[j], both of k numbers.
template <int P, int X, bool kBf16, bool kFloats>
GALLEY_INLINE void products(const uint8_t* const* w, const uint8_t* const* x, int64_t k,
                            Float (&sums)[P][X]) {
  constexpr int kStep = kFloats ? 2 : 1;
  constexpr int64_t kPairBytes = kLanes * (kBf16 ? 4 : 8);
  alignas(64) float values[X][2 * kChunkPairs];
  Float even[P][X] = {}, odd[P][X] = {};
  for (int64_t first = 0, pairs = (k + 1) / 2; first < pairs; first += kChunkPairs) {
    const int64_t count = pairs - first < kChunkPairs ? pairs - first : kChunkPairs;
    const float *x_even[X], *x_odd[X];
    for (int j = 0; j < X; j++) {
      float* odds = values[j] + (kFloats ? 1 : kChunkPairs);
      widen<kFloats>(x[j], k, first, count, values[j], odds);
      x_even[j] = values[j], x_odd[j] = odds;
    }
    for (int64_t i = 0; i < count; i++) {
      Float w_even[P], w_odd[P];
      for (int p = 0; p < P; p++) {
        const uint8_t* at = w[p] + (first + i) * kPairBytes;
        if (kBf16) {
          const Int both = load_pairs(at);
          w_even[p] = low_half(both), w_odd[p] = high_half(both);
        } else {
          const float* both = reinterpret_cast<const float*>(at);
          w_even[p] = load(both), w_odd[p] = load(both + kLanes);
        }
      }
      for (int j = 0; j < X; j++) {
        const Float e = all(x_even[j][i * kStep]), o = all(x_odd[j][i * kStep]);
        for (int p = 0; p < P; p++) {
          even[p][j] = fma(w_even[p], e, even[p][j]);
          odd[p][j] = fma(w_odd[p], o, odd[p][j]);
        }
      }
    }
  }
  for (int p = 0; p < P; p++) {
    for (int j = 0; j < X; j++) sums[p][j] = even[p][j] + odd[p][j];
  }
}

// Calls use(numbers are bf16, x is f32) with the formats of a job, as types.
template <bool value> struct Flag {
  static constexpr bool is = value;
};
template <class Use> GALLEY_INLINE void with_formats(bool bf16, Kind x_kind, const Use& use) {
  const bool floats = x_kind == Kind::f32;
  if (bf16) return floats ? use(Flag<true>{}, Flag<true>{}) : use(Flag<true>{}, Flag<false>{});
  return floats ? use(Flag<false>{}, Flag<true>{}) : use(Flag<false>{}, Flag<false>{});
}

template <int X, bool kBf16, bool kFloats>
void shrink_rows(const ShrinkJob& job, const uint8_t* const* x, float* sums) {
  Float sum[1][X];
  products<1, X, kBf16, kFloats>(&job.a, x, job.k, sum);
  for (int j = 0; j < X; j++) store(sums + j * kLanes, sum[0][j]);
}

void adapter_shrink(const ShrinkJob& job, const uint8_t* const* x, int64_t rows, float* sums) {
  with_formats(job.bf16, job.x_kind, [&](auto bf16, auto floats) {
    constexpr bool kBf16 = decltype(bf16)::is, kFloats = decltype(floats)::is;
    int64_t j = 0;
    for (; j + 4 <= rows; j += 4) shrink_rows<4, kBf16, kFloats>(job, x + j, sums + j * kLanes);
    for (; j < rows; j++) shrink_rows<1, kBf16, kFloats>(job, x + j, sums + j * kLanes);
  });
}

// y + sum, with the gains and shifts of a panel if there are any.
GALLEY_INLINE Float added(const Float& y, const Float& sum, const float* affine) {
  return affine ? fma(y, load(affine), sum) + load(affine + kLanes) : y + sum;
}

template <int P, int X, bool kBf16, bool kFloats>
void expand_rows(const ExpandJob& job, int64_t panel, const uint8_t* const* x, float* const* out) {
  const uint8_t* w[P];
  for (int p = 0; p < P; p++) w[p] = job.b + (panel + p) * adapter_panel_bytes(job.k, kBf16);
  Float sums[P][X];
  products<P, X, kBf16, kFloats>(w, x, job.k, sums);
  for (int p = 0; p < P; p++) {
    const int64_t column = (panel + p) * job.step, left = job.n - (panel + p) * kLanes;
    const int n = left < kLanes ? static_cast<int>(left) : kLanes;
    const float* affine = job.affine ? job.affine + (panel + p) * 2 * kLanes : nullptr;
    for (int j = 0; j < X; j++) {
      float* y = out[j] + column;
      store_part(y, added(load_part(y, n), sums[p][j], affine), n);
    }
  }
}

template <int P, bool kBf16, bool kFloats>
void expand_panels(const ExpandJob& job, int64_t panel, const uint8_t* const* x, int64_t rows,
                   float* const* out) {
  int64_t j = 0;
  for (; j + 4 <= rows; j += 4) expand_rows<P, 4, kBf16, kFloats>(job, panel, x + j, out + j);
  for (; j < rows; j++) expand_rows<P, 1, kBf16, kFloats>(job, panel, x + j, out + j);
}

void adapter_expand(const ExpandJob& job, int64_t first, int64_t panels, const uint8_t* const* x,
                    int64_t rows, float* const* out) {
  with_formats(job.bf16, job.x_kind, [&](auto bf16, auto floats) {
    constexpr bool kBf16 = decltype(bf16)::is, kFloats = decltype(floats)::is;
    int64_t p = first;
    for (; p + 2 <= first + panels; p += 2) {
      expand_panels<2, kBf16, kFloats>(job, p, x, rows, out);
    }
    if (p < first + panels) expand_panels<1, kBf16, kFloats>(job, p, x, rows, out);
  });
}

// P halves from h on, of equal rank and input, for X rows.
template <int P, int X, bool kBf16, bool kFloats>
void add_rows(const HalfPanels& of, int h, const uint8_t* const* low, float* const* y) {
  Float sums[P][X];
  products<P, X, kBf16, kFloats>(of.b + h, low, of.rank[h], sums);
  for (int p = 0; p < P; p++) {
    for (int j = 0; j < X; j++) {
      float* at = y[j] + (h + p) * kLanes;
      store(at, added(load(at), sums[p][j], of.affine[h + p]));
    }
  }
}

template <int P, bool kBf16, bool kFloats>
void add_some_rows(const HalfPanels& of, int h, const uint8_t* const* low, float* const* y,
                   int rows) {
  switch (rows) {
    case 1: return add_rows<P, 1, kBf16, kFloats>(of, h, low, y);
    case 2: return add_rows<P, 2, kBf16, kFloats>(of, h, low, y);
    case 3: return add_rows<P, 3, kBf16, kFloats>(of, h, low, y);
    case 4: return add_rows<P, 4, kBf16, kFloats>(of, h, low, y);
    case 5: return add_rows<P, 5, kBf16, kFloats>(of, h, low, y);
    default: return add_rows<P, kAddedRows, kBf16, kFloats>(of, h, low, y);
  }
}

template <bool kBf16, bool kFloats>
void add_halves(const AdapterAddend& addend, const HalfPanels& of, const int32_t* rows, int count,
                int64_t first_row, float* y) {
  const bool together = of.rank[0] == of.rank[1] && of.input[0] == of.input[1];
  for (int h = 0; h < 2; h++) {
    if (!of.rank[h]) continue;
    const uint8_t* low[kAddedRows];
    float* at[kAddedRows];
    for (int j = 0; j < count; j++) {
      low[j] = addend.low.at(rows[j], of.input[h]);
      at[j] = y + (rows[j] - first_row) * 2 * kLanes;
    }
    if (together) return add_some_rows<2, kBf16, kFloats>(of, 0, low, at, count);
    add_some_rows<1, kBf16, kFloats>(of, h, low, at, count);
  }
}

void adapter_add(const AdapterAddend& addend, int64_t panel, int64_t row, int64_t rows, float* y,
                 bool affine_only) {
  const AdapterRows& in_step = *addend.rows;
  const auto last = static_cast<int32_t>(row + rows);
  uint64_t done[4] = {};  // of up to 256 rows
  for (int64_t first = 0; first < rows; first++) {
    auto next = static_cast<int32_t>(row + first);
    const int32_t place = in_step.place[next];
    if (place == AdapterRows::kNone || done[first / 64] >> (first % 64) & 1) continue;
    HalfPanels of = half_panels(addend, panel, place);
    for (int h = 0; affine_only && h < 2; h++) of.rank[h] = of.affine[h] ? of.rank[h] : 0;
    while (next != AdapterRows::kNone && next < last) {
      int32_t some[kAddedRows];
      int count = 0;
      for (; count < kAddedRows && next != AdapterRows::kNone && next < last; count++) {
        done[(next - row) / 64] |= uint64_t{1} << ((next - row) % 64);
        some[count] = next;
        next = in_step.next[next];
      }
      with_formats(addend.table.bf16, addend.low.kind, [&](auto bf16, auto floats) {
        add_halves<decltype(bf16)::is, decltype(floats)::is>(addend, of, some, count, row, y);
      });
    }
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
