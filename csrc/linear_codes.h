// Codes of a packed weight as bytes, and sums of their products as floats; included by kernels of
// linear.
#pragma once
#include "linear_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

// One half (16 columns) of a block of codes, as bytes [8][32 columns][4]; `codes` and `bytes` are at
// the half. kBits above a nibble, 0 .. 2; a table of levels or null.
template <int kBits>
void expand_half(const uint8_t* codes, const uint8_t* levels, uint8_t* bytes, Prefetch* prefetch) {
  const Int low = all(0x0f0f0f0f), upper = all(kBits == 1 ? 0x01010101 : 0x03030303);
  Int bits[2] = {};  // above the nibbles of steps 0 .. 3 and 4 .. 7, the next step's lowest
  if (kBits > 0) bits[0] = words(codes + 4 * kHalves * 64);
  if (kBits == 1) bits[1] = shift_right<4>(bits[0]);
  if (kBits == 2) bits[1] = words(codes + 5 * kHalves * 64);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const Int both = words(codes + j * kHalves * 64);
    Int step[2] = {both & low, shift_right<4>(both) & low};
    for (int i = 0; i < 2; i++) {
      if (kBits > 0) step[i] = step[i] | shift_left<4>(bits[i] & upper);
      if (kBits > 0) bits[i] = shift_right<kBits>(bits[i]);
      if (levels) step[i] = look_up(levels, step[i]);
      store(reinterpret_cast<int32_t*>(bytes + (j + 4 * i) * kHalves * 64), step[i]);
    }
    if (prefetch) advance(*prefetch);
  }
  for (int i = 0; prefetch && i < kBits; i++) advance(*prefetch);
}
inline void copy_half(const uint8_t* codes, uint8_t* bytes, Prefetch* prefetch) {
  for (int j = 0; j < 8; j++) {
    store(reinterpret_cast<int32_t*>(bytes + j * kHalves * 64), words(codes + j * kHalves * 64));
    if (prefetch) advance(*prefetch);
  }
}
// The same of 2 bits and kBits above them, 0 or 1.
template <int kBits> void expand_low_half(const uint8_t* codes, uint8_t* bytes, Prefetch* prefetch) {
  const Int pair = all(0x03030303), one = all(0x01010101);
  Int bits = {};
  if (kBits) bits = words(codes + 2 * kHalves * 64);
  for (int line = 0; line < 2; line++) {
    Int pairs = words(codes + line * kHalves * 64);
    for (int j = 4 * line; j < 4 * line + 4; j++) {
      Int step = pairs & pair;
      if (kBits) step = step | shift_left<2>(bits & one), bits = shift_right<1>(bits);
      store(reinterpret_cast<int32_t*>(bytes + j * kHalves * 64), step);
      pairs = shift_right<2>(pairs);
    }
    if (prefetch) advance(*prefetch);
  }
  if (kBits && prefetch) advance(*prefetch);
}
// The same of 1 bit.
inline void expand_bits(const uint8_t* codes, uint8_t* bytes, Prefetch* prefetch) {
  Int bits = words(codes);
  for (int j = 0; j < 8; j++, bits = shift_right<1>(bits)) {
    store(reinterpret_cast<int32_t*>(bytes + j * kHalves * 64), bits & all(0x01010101));
  }
  if (prefetch) advance(*prefetch);
}
// Digit n of each byte: the highest to base 3 of five.
GALLEY_INLINE Int digits(const Int& bytes, int64_t n) {
  typedef uint16_t PairPart __attribute__((vector_size(64 / GALLEY_PARTS)));
  const uint16_t power = kPowersOf3[n];
  Int r;
  GALLEY_EACH_PART {
    const PairPart pairs = (PairPart)bytes.part[i];
    const PairPart low = ((pairs * power) & 255) * 3 >> 8;
    const PairPart high = ((pairs & 0xff00) * power >> 8) * 3 & 0x300;
    r.part[i] = (IntPart)(low | high);
  }
  return r;
}
// Trits of block `block` of its span.
inline void expand_trits(const WeightLayout& w, const uint8_t* codes, int64_t block, uint8_t* bytes,
                         Prefetch* prefetch) {
  block %= kTritBlocks;
  codes -= block * w.block_bytes();
  for (int j = 0; j < 8; j++) {
    const TritPlace at = trit_place(block, j);
    store(reinterpret_cast<int32_t*>(bytes + j * kHalves * 64),
          digits(words(codes + at.line * kHalves * 64), at.digit));
  }
  for (int i = block < 5 ? 2 : 1; prefetch && i > 0; i--) advance(*prefetch);
}
// Block `block` of its span, at `codes`.
GALLEY_INLINE void expand(const WeightLayout& w, const uint8_t* codes, int64_t block, const uint8_t* levels,
                          uint8_t* bytes, Prefetch* prefetch) {
  switch (w.format) {
    case Format::t2: return expand_trits(w, codes, block, bytes, prefetch);
    case Format::i1: return expand_bits(codes, bytes, prefetch);
    case Format::i2: return expand_low_half<0>(codes, bytes, prefetch);
    case Format::i3: return expand_low_half<1>(codes, bytes, prefetch);
    case Format::i8: return copy_half(codes, bytes, prefetch);
    case Format::i5: return expand_half<1>(codes, levels, bytes, prefetch);
    case Format::i6: return expand_half<2>(codes, levels, bytes, prefetch);
    default: return expand_half<0>(codes, levels, bytes, prefetch);
  }
}

// int8 with one scale per output, on rows with one scale; `end` is where the codes of a row end.
// The excess of sums of products with unsigned codes:
GALLEY_INLINE Int excess(const uint8_t* end) { return all((kSubtracted - 128) * word_at(end + 4)); }
// Sums of 16 columns of a panel as floats:
GALLEY_INLINE Float scaled(const Int& sums, const uint8_t* panel, int half, const uint8_t* end) {
  const Float scale = load(reinterpret_cast<const float*>(panel) + half * kLanes);
  return to_float(sums) * (scale * all(float_at(end)));
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
