// Rows in blocks of AMX tiles, and the products of a block with words of K; included by kernels of linear.
#pragma once
#include "linear_lanes.h"
#include "tiles.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int64_t kAhead = 4096;  // bytes that a lone block of rows prefetches ahead
constexpr int64_t kWordBytes = kHalves * 64;  // of a panel, for one word of K
constexpr int64_t kPieceBlocks = 8;  // of a panel, that become bf16 at a time: 16 KB

struct Bf16Product {
  template <Tile c, Tile a, Tile b> static GALLEY_INLINE void add() { add_bf16<c, a, b>(); }
};
struct CodeProduct {
  template <Tile c, Tile a, Tile b> static GALLEY_INLINE void add() { add_unsigned<c, a, b>(); }
};

// Numbers too small to be normal count as 0, as tiles take them.
class FlushToZero {
 public:
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before_); }
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;

 private:
  unsigned before_;
};

// Each lane's byte four times.
GALLEY_INLINE Int four_times(const Int& byte) {
  const Int two = byte | shift_left<8>(byte);
  return two | shift_left<16>(two);
}

// Rows in `count` blocks of `size`, at most 8 of 30 together (kChunkRows). The last one overlaps with
// the one before it where they do not fit: all blocks have tiles of the same sizes.
struct TileBlocks {
  int64_t begin, end, count, size;
  int upper, lower;  // rows of the two tiles

  TileBlocks(int64_t begin, int64_t end)
      : begin(begin), end(end), count((end - begin + 2 * kTileRows - 1) / (2 * kTileRows)),
        size((end - begin + count - 1) / count),
        upper(static_cast<int>(size > kTileRows ? (size + 1) / 2 : size)),
        lower(static_cast<int>(size) - upper) {}
  int64_t first_row(int64_t block) const {
    const int64_t row = begin + block * size;
    return row < end - size ? row : end - size;
  }
};

template <bool kLower> GALLEY_INLINE void load_sums(const float* y, int upper) {
  constexpr int64_t kBytes = kPanel * 4;
  load_tile<c00>(y, kBytes), load_tile<c01>(y + kLanes, kBytes);
  if (!kLower) return;
  load_tile<c10>(y + upper * kPanel, kBytes), load_tile<c11>(y + upper * kPanel + kLanes, kBytes);
}
template <bool kLower> GALLEY_INLINE void store_sums(float* y, int upper) {
  constexpr int64_t kBytes = kPanel * 4;
  store_tile<c00>(y, kBytes), store_tile<c01>(y + kLanes, kBytes);
  if (!kLower) return;
  store_tile<c10>(y + upper * kPanel, kBytes), store_tile<c11>(y + upper * kPanel + kLanes, kBytes);
}

// `between` is called after each step with the number of steps that are left, while the tiles compute.
template <class Product, bool kLower, bool kStreams, class Between>
GALLEY_INLINE void add_products(const uint8_t* x, int64_t x_bytes, int upper, const uint8_t* w,
                                int64_t steps, const uint8_t* next, int64_t lines,
                                const Between& between) {
  for (; steps > 0; steps--, x += kTileBytes, w += kTileWords * kWordBytes) {
    load_rows<a0, kStreams>(x, x_bytes);
    load_tile<b0>(w, kWordBytes);
    Product::template add<c00, a0, b0>();
    load_tile<b1>(w + 64, kWordBytes);
    Product::template add<c01, a0, b1>();
    if (kLower) {
      load_rows<a1, kStreams>(x + upper * x_bytes, x_bytes);
      Product::template add<c10, a1, b0>();
      Product::template add<c11, a1, b1>();
    }
    for (int64_t i = 0; i < lines; i++, next += 64) __builtin_prefetch(next, 0, 2);
    between(steps);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
