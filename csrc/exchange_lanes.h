// Transposition of square blocks of registers, for kernels that turn rows into columns.
#pragma once
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

typedef uint64_t LongLine __attribute__((vector_size(64)));  // eight numbers of 64 bits
typedef uint32_t WordLine __attribute__((vector_size(64)));  // sixteen of 32 bits

// Exchanges the blocks of `kSize` beside the diagonal, of blocks twice that size.
template <int kSize, class Line, int N> GALLEY_INLINE void exchange(Line (&line)[N]) {
  Line low, high;
  for (int i = 0; i < N; i++) {
    low[i] = i & kSize ? N + i - kSize : i;
    high[i] = i & kSize ? N + i : i + kSize;
  }
  _Pragma("GCC unroll 16") for (int i = 0; i < N; i++) {
    if (i & kSize) continue;
    const Line a = line[i], b = line[i + kSize];
    line[i] = __builtin_shuffle(a, b, low);
    line[i + kSize] = __builtin_shuffle(a, b, high);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
