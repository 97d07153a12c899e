// Passes over a row of logits, the building blocks of the sampler (sample_row.cpp).
#pragma once
#include "variants.h"

namespace galley {

constexpr int64_t kSumBlock = 1024;  // logits per partial sum
constexpr int64_t kMaxGroup = 64;    // logits per partial maximum

struct RowScan {
  float max;       // -infinity where no logit is larger
  int32_t argmax;  // the lowest index with that value; -1 where max is -infinity
  bool has_nan;
};

// The maximum of each lane of what has been seen of a row, and where it is: `where` + lane, -1 = nowhere.
struct alignas(64) LaneScan {
  float best[16];
  int32_t where[16], nan[16];
};

// e[i] = exp((x[i] - max) / temperature).
struct Weighing {
  float max, inverse_temperature;
};

GALLEY_VARIANTS(
    RowScan scan_row(const float* x, int64_t n);
    // The same in pieces, from LaneScan of -infinity, -1 and 0 on: n more numbers, the first of which is `first`.
    void scan_more(const float* x, int64_t n, int64_t first, LaneScan& scan);
    RowScan scan_end(const LaneScan& scan);
    // out = x where the bit is set, else -infinity. `mask`: bit i of word w is token 64 w + i.
    void mask_row(const float* x, const uint64_t* mask, int64_t n, float* out);
    int64_t count_greater(const float* x, int64_t n, float value);
    // out[i] = maximum of x[64 i .. 64 i + 63]; returns how many.
    int64_t group_maxima(const float* x, int64_t n, float* out);
    // Indices of x >= bound, ascending; returns how many. `out` has room for n.
    int64_t collect(const float* x, int64_t n, float bound, int32_t* out);
    // e of n values.
    void weigh(const float* x, int64_t n, Weighing w, float* e);
    // sums[b] = sum of e over x[1024 b .. 1024 b + 1023]; returns their sum.
    double weigh_blocks(const float* x, int64_t n, Weighing w, double* sums);)

}  // namespace galley
