// Definitions for sample.h; compiled once per instruction set (variants.h).
#pragma once
#include "math_lanes.h"
#include "sample.h"

namespace galley {
namespace GALLEY_VARIANT {

GALLEY_INLINE int part_of(int64_t left) { return left < kLanes ? static_cast<int>(left) : kLanes; }

// A register of x, with -infinity past the end.
GALLEY_INLINE Float load_logits(const float* x, int64_t left) {
  if (left >= kLanes) return load(x);
  const Int inside = lane_numbers() < all(static_cast<int32_t>(left));
  return select(inside, load_part(x, static_cast<int>(left)), all(-__builtin_inff()));
}

// Maxima and their first positions in one of several interleaved passes over a row: a single pass
// would wait for its own comparisons.
struct RunningMax {
  Float best = all(-__builtin_inff());
  Int where = all(-1), nan = all(0);

  GALLEY_INLINE void see(const Float& v, int64_t i) {
    const Int better = v > best;
    best = max(v, best);
    where = select(better, all(static_cast<int32_t>(i)), where);
    nan = nan | is_nan(v);
  }
  GALLEY_INLINE void join(RowScan& r) const {
    float value[kLanes];
    int32_t start[kLanes];
    store(value, best);
    store(start, where);
    r.has_nan = r.has_nan || mask_bits(nan) != 0;
    for (int lane = 0; lane < kLanes; lane++) {
      if (start[lane] < 0) continue;
      const int32_t index = start[lane] + lane;
      if (value[lane] > r.max || (value[lane] == r.max && index < r.argmax)) {
        r.max = value[lane];
        r.argmax = index;
      }
    }
  }
};

RowScan scan_row(const float* x, int64_t n) {
  constexpr int kWays = 4 / kParts;
  RunningMax running[kWays];
  int64_t i = 0;
  for (; i + kWays * kLanes <= n; i += kWays * kLanes) {
#pragma GCC unroll 4
    for (int way = 0; way < kWays; way++) {
      running[way].see(load(x + i + way * kLanes), i + way * kLanes);
    }
  }
  for (; i < n; i += kLanes) running[0].see(load_logits(x + i, n - i), i);
  RowScan r{-__builtin_inff(), -1, false};
  for (const RunningMax& run : running) run.join(r);
  return r;
}

void scan_more(const float* x, int64_t n, int64_t first, LaneScan& scan) {
  RunningMax piece;
  for (int64_t i = 0; i < n; i += kLanes) piece.see(load_logits(x + i, n - i), first + i);
  const Float best = load(scan.best);
  const Int where = load(scan.where), equal = (piece.best >= best) & (best >= piece.best);
  const Int better = (piece.best > best) | (equal & (piece.where < where));  // pieces come in any order
  store(scan.best, max(piece.best, best)), store(scan.where, select(better, piece.where, where));
  store(scan.nan, load(scan.nan) | piece.nan);
}

RowScan scan_end(const LaneScan& scan) {
  RowScan r{-__builtin_inff(), -1, false};
  RunningMax{load(scan.best), load(scan.where), load(scan.nan)}.join(r);
  return r;
}

void mask_row(const float* x, const uint64_t* mask, int64_t n, float* out) {
  const Float removed = all(-__builtin_inff());
  // Lane i tests bit i of 16.
  alignas(64) static const int32_t bits[kLanes] = {1 << 0,  1 << 1,  1 << 2,  1 << 3,
                                                   1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                                   1 << 8,  1 << 9,  1 << 10, 1 << 11,
                                                   1 << 12, 1 << 13, 1 << 14, 1 << 15};
  const Int lane_bit = load(bits);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int32_t word = static_cast<int32_t>(mask[i / 64] >> (i % 64) & 0xffff);
    const Int allowed = (all(word) & lane_bit) >= all(1);
    const int part = part_of(n - i);
    store_part(out + i, select(allowed, load_part(x + i, part), removed), part);
  }
}

int64_t count_greater(const float* x, int64_t n, float value) {
  Int count = all(0);  // a true comparison is -1
  for (int64_t i = 0; i < n; i += kLanes) {
    count = count + (load_logits(x + i, n - i) > all(value));
  }
  int32_t lane[kLanes];
  store(lane, count);
  int64_t total = 0;
  for (int i = 0; i < kLanes; i++) total -= lane[i];
  return total;
}

int64_t group_maxima(const float* x, int64_t n, float* out) {
  int64_t groups = 0;
  for (int64_t i = 0; i < n; i += kMaxGroup, groups++) {
    const int64_t end = i + kMaxGroup < n ? i + kMaxGroup : n;
    Float m = all(-__builtin_inff());
    for (int64_t j = i; j < end; j += kLanes) m = max(m, load_logits(x + j, end - j));
    out[groups] = max_lane(m);
  }
  return groups;
}

int64_t collect(const float* x, int64_t n, float bound, int32_t* out) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    uint32_t bits = mask_bits(load_logits(x + i, n - i) >= all(bound));
    // Where the bound is -infinity, the padding of load_logits would pass.
    if (n - i < kLanes) bits &= (1u << (n - i)) - 1;
    for (; bits; bits &= bits - 1) {
      out[count++] = static_cast<int32_t>(i) + __builtin_ctz(bits);
    }
  }
  return count;
}

GALLEY_INLINE Float weight_of(const Float& x, Weighing w) {
  return exp((x - all(w.max)) * all(w.inverse_temperature));
}

void weigh(const float* x, int64_t n, Weighing w, float* e) {
  for (int64_t i = 0; i < n; i += kLanes) {
    store_part(e + i, weight_of(load_logits(x + i, n - i), w), part_of(n - i));
  }
}

double weigh_blocks(const float* x, int64_t n, Weighing w, double* sums) {
  double total = 0;
  for (int64_t i = 0; i < n; i += kSumBlock) {
    const int64_t end = i + kSumBlock < n ? i + kSumBlock : n;
    Float a = zero(), b = zero();
    for (int64_t j = i; j < end; j += 2 * kLanes) {
      a = a + weight_of(load_logits(x + j, end - j), w);
      if (j + kLanes < end) b = b + weight_of(load_logits(x + j + kLanes, end - j - kLanes), w);
    }
    sums[i / kSumBlock] = sum(a + b);
    total += sums[i / kSumBlock];
  }
  return total;
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
