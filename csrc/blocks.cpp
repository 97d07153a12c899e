// GGUF's block types. Offsets are those of ggml's structs.
#include "blocks.h"

#include <cstring>

namespace galley {
namespace {

uint8_t* bytes_at(void* at) { return static_cast<uint8_t*>(at); }

// A float16 as it is.
void copy_half(const uint8_t* from, void* to) { std::memcpy(to, from, 2); }
// Minus a float16: types of mins subtract them.
void copy_negated(const uint8_t* from, void* to) {
  copy_half(from, to);
  bytes_at(to)[1] ^= 0x80;
}

// `n` bytes: the low nibbles, then the high ones.
void nibbles(const uint8_t* __restrict from, int n, uint8_t* __restrict to) {
  for (int j = 0; j < n; j++) to[j] = from[j] & 15, to[n + j] = from[j] >> 4;
}

// Bit j of `high` is the fifth of code j.
void fifth_bits(const uint8_t* high, uint8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, high, 4);
  for (int j = 0; j < 32; j++) codes[j] |= (bits >> j & 1) << 4;
}

// The bits kMask at `from` of 32 bytes, to bit `to` of 32 codes.
template <uint32_t kMask>
void add_bits(const uint8_t* __restrict bytes, int from, int to, uint8_t* __restrict codes) {
  for (int j = 0; j < 32; j += 4) {  // four at a time: there are no shifts of bytes
    uint32_t four, sum;
    std::memcpy(&four, bytes + j, 4), std::memcpy(&sum, codes + j, 4);
    sum |= (four >> from & kMask * 0x01010101u) << to;
    std::memcpy(codes + j, &sum, 4);
  }
}

// 64 bytes of 2-bit codes: of each half, run by run of 32, bits 0-1, 2-3, 4-5, 6-7.
void pairs(const uint8_t* from, uint8_t* to) {
  std::memset(to, 0, 256);
  for (int run = 0; run < 8; run++) add_bits<3>(from + run / 4 * 32, run % 4 * 2, 0, to + 32 * run);
}

// Eight 6-bit scales (A .. H) and mins (a .. h) in twelve bytes:
//   0-3 EEAAAAAA ..   4-7 eeaaaaaa ..   8-11 eeeeEEEE ..
void sixes(const uint8_t* from, uint8_t* scale, uint8_t* min) {
  for (int i = 0; i < 4; i++) {
    const uint8_t low = from[i], mid = from[4 + i], high = from[8 + i];
    scale[i] = low & 63, scale[4 + i] = (high & 15) | (low >> 2 & 48);
    min[i] = mid & 63, min[4 + i] = high >> 4 | (mid >> 2 & 48);
  }
}

void q4_0(const uint8_t* b, const CodeTarget& to) {
  copy_half(b, to.scale);
  nibbles(b + 2, 16, to.q);
}

void q4_1(const uint8_t* b, const CodeTarget& to) {
  copy_half(b, to.scale), copy_half(b + 2, to.min);
  nibbles(b + 4, 16, to.q);
}

void q5_0(const uint8_t* b, const CodeTarget& to) {
  copy_half(b, to.scale);
  nibbles(b + 6, 16, to.q);
  fifth_bits(b + 2, to.q);
}

void q5_1(const uint8_t* b, const CodeTarget& to) {
  copy_half(b, to.scale), copy_half(b + 2, to.min);
  nibbles(b + 8, 16, to.q);
  fifth_bits(b + 4, to.q);
}

void q8_0(const uint8_t* b, const CodeTarget& to) {
  copy_half(b, to.scale);
  uint8_t* __restrict q = to.q;
  for (int j = 0; j < 32; j++) q[j] = b[2 + j] ^ 0x80;
}

// 4-bit scales, and 4-bit mins in the high nibbles.
void q2_k(const uint8_t* b, const CodeTarget& to) {
  for (int i = 0; i < 16; i++) {
    bytes_at(to.scale)[i] = b[i] & 15, bytes_at(to.min)[i] = b[i] >> 4;
  }
  pairs(b + 16, to.q);
  copy_half(b + 80, to.super_scale), copy_negated(b + 82, to.super_min);
}

// Third bits of run r: bit r of the first 32 bytes. Of scale i of 6 bits around 32, byte i % 8 has
// four (the high ones of the byte if i > 7), byte 8 + i % 4 the two highest, at 2 * (i / 4).
void q3_k(const uint8_t* b, const CodeTarget& to) {
  pairs(b + 32, to.q);
  for (int run = 0; run < 8; run++) add_bits<1>(b, run, 2, to.q + 32 * run);
  const uint8_t* packed = b + 96;
  for (int i = 0; i < 16; i++) {
    const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
    const int high = packed[8 + i % 4] >> i / 4 * 2 & 3;
    bytes_at(to.scale)[i] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  copy_half(b + 108, to.super_scale);
}

// Each 32 bytes of nibbles hold two groups.
void q4_k(const uint8_t* b, const CodeTarget& to) {
  copy_half(b, to.super_scale), copy_negated(b + 2, to.super_min);
  sixes(b + 4, bytes_at(to.scale), bytes_at(to.min));
  for (int i = 0; i < 4; i++) nibbles(b + 16 + 32 * i, 32, to.q + 64 * i);
}

// Bit g of byte j of `b + 16` is the fifth of code j of group g.
void q5_k(const uint8_t* b, const CodeTarget& to) {
  copy_half(b, to.super_scale), copy_negated(b + 2, to.super_min);
  sixes(b + 4, bytes_at(to.scale), bytes_at(to.min));
  for (int i = 0; i < 4; i++) nibbles(b + 48 + 32 * i, 32, to.q + 64 * i);
  for (int g = 0; g < 8; g++) add_bits<1>(b + 16, g, 4, to.q + 32 * g);
}

// Each half of 128 values has 64 bytes of nibbles (two runs of low ones, then two of high ones) and
// 32 bytes of upper pairs of bits, of run r at 2 r.
void q6_k(const uint8_t* b, const CodeTarget& to) {
  for (int half = 0; half < 2; half++) {
    const uint8_t* high = b + 128 + 32 * half;
    uint8_t* q = to.q + 128 * half;
    nibbles(b + 64 * half, 64, q);
    for (int run = 0; run < 4; run++) add_bits<3>(high, 2 * run, 4, q + 32 * run);
  }
  std::memcpy(to.scale, b + 192, 16);
  copy_half(b + 208, to.super_scale);
}

// Of the scale of group g, around 32, four bits lie at 4 g of `b + 4`, the two highest at 2 g of
// `b + 2`.
void iq4_xs(const uint8_t* b, const CodeTarget& to) {
  copy_half(b, to.super_scale);
  for (int g = 0; g < 8; g++) {
    const int low = b[4 + g / 2] >> g % 2 * 4 & 15, high = b[2 + g / 4] >> g % 4 * 2 & 3;
    bytes_at(to.scale)[g] = static_cast<uint8_t>((low | high << 4) - 32);
    nibbles(b + 8 + 16 * g, 16, to.q + 32 * g);
  }
}

// The exponent plus 128, with levels that are doubled.
void mxfp4(const uint8_t* b, const CodeTarget& to) {
  bytes_at(to.scale)[0] = b[0];
  nibbles(b + 1, 16, to.q);
}

// `count` digits to base 3 of each of n bytes: the first of all bytes, then the second ... A digit is
// the highest of a byte times a power of three, modulo 256.
uint8_t* digits(const uint8_t* from, int n, int count, uint8_t* to) {
  uint8_t power = 1;
  for (int i = 0; i < count; i++, power *= 3) {
    for (int j = 0; j < n; j++) *to++ = static_cast<uint8_t>(from[j] * power) * 3 >> 8;
  }
  return to;
}

void tq1_0(const uint8_t* b, const CodeTarget& to) {
  digits(b + 48, 4, 4, digits(b + 32, 16, 5, digits(b, 32, 5, to.q)));
  copy_half(b + 52, to.scale);
}

void tq2_0(const uint8_t* b, const CodeTarget& to) {
  pairs(b, to.q);
  copy_half(b + 64, to.scale);
}

// From so many bytes on.
CodeTarget part_of(const CodeTarget& whole, int64_t codes, int64_t scales, int64_t supers) {
  auto from = [](void* array, int64_t offset) -> void* {
    return array == nullptr ? nullptr : bytes_at(array) + offset;
  };
  CodeTarget part;
  part.q = whole.q + codes;
  part.scale = from(whole.scale, scales), part.min = from(whole.min, scales);
  part.super_scale = from(whole.super_scale, supers);
  part.super_min = from(whole.super_min, supers);
  return part;
}

constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                             1,    13,   25,  38,  53,  69,  89,  113};
// E2M1 numbers, doubled.
constexpr int8_t kE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

using F = Format;
using S = Scale;

constexpr WeightLayout format(F codes, int32_t group, S scale, int32_t zero,
                              Offset offset = Offset::zero, CodeTable table = CodeTable::none) {
  return {codes, group, zero, scale, offset, table};
}
constexpr WeightLayout with_min(F codes, int32_t group, S scale) {
  return format(codes, group, scale, 0, Offset::min);
}
constexpr WeightLayout in_table(int32_t group, S scale) {
  return format(F::i4, group, scale, 0, Offset::zero, CodeTable::levels);
}

}  // namespace

const std::vector<BlockType>& block_types() {
  static const std::vector<BlockType> types = {
      {"Q4_0", 32, 18, format(F::i4, 32, S::f16, 8), nullptr, q4_0},
      {"Q4_1", 32, 20, with_min(F::i4, 32, S::f16), nullptr, q4_1},
      {"Q5_0", 32, 22, format(F::i5, 32, S::f16, 16), nullptr, q5_0},
      {"Q5_1", 32, 24, with_min(F::i5, 32, S::f16), nullptr, q5_1},
      {"Q8_0", 32, 34, format(F::i8, 32, S::f16, 128), nullptr, q8_0},
      {"Q2_K", 256, 84, with_min(F::i2, 16, S::u4), nullptr, q2_k},
      {"Q3_K", 256, 110, format(F::i3, 16, S::s6, 4), nullptr, q3_k},
      {"Q4_K", 256, 144, with_min(F::i4, 32, S::u6), nullptr, q4_k},
      {"Q5_K", 256, 176, with_min(F::i5, 32, S::u6), nullptr, q5_k},
      {"Q6_K", 256, 210, format(F::i6, 16, S::i8, 32), nullptr, q6_k},
      {"IQ4_NL", 32, 18, in_table(32, S::f16), kIq4, q4_0},
      {"IQ4_XS", 256, 136, in_table(32, S::i8), kIq4, iq4_xs},
      {"MXFP4", 32, 17, in_table(32, S::e8m0), kE2m1, mxfp4},
      {"TQ1_0", 256, 54, format(F::t2, 256, S::f16, 1), nullptr, tq1_0},
      {"TQ2_0", 256, 66, format(F::i2, 256, S::f16, 1), nullptr, tq2_0},
  };
  return types;
}

const BlockType& block_type(const std::string& name) {
  for (const BlockType& type : block_types()) {
    if (name == type.name) return type;
  }
  throw std::invalid_argument("no block type " + name);
}

WeightLayout BlockType::layout(int64_t n, int64_t k) const {
  if (n <= 0 || k <= 0 || k % values) throw std::invalid_argument("rows are not whole blocks");
  WeightLayout layout = format;
  layout.n = n, layout.k = k;
  if (k <= layout.group) layout.group = 0;
  return layout;
}

void decode_row(const BlockType& type, const uint8_t* row, int64_t k, const CodeTarget& to) {
  const int64_t scales = type.values / type.format.group * type.format.scale_bytes();
  for (int64_t block = 0; block < k / type.values; block++) {
    const int64_t supers = block * type.format.super_bytes();
    type.decode(row + block * type.bytes, part_of(to, block * type.values, block * scales, supers));
  }
}

void decode_blocks(const BlockType& type, const uint64_t* rows, int64_t n, int64_t k,
                   const CodeTarget& to) {
  const WeightLayout w = type.layout(n, k);
  if (type.levels) std::memcpy(to.table, type.levels, 16);
  const int64_t scales = w.scales() * w.scale_bytes(), supers = w.spans() * w.super_bytes();
  for (int64_t i = 0; i < n; i++) {
    decode_row(type, reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(rows[i])), k,
               part_of(to, i * k, i * scales, i * supers));
  }
}

}  // namespace galley
