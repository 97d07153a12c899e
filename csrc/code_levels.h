// Levels of codes of up to eight bits as bf16 and float32, by AVX-512; included by kernels that use AMX.
#pragma once
#include "linear_spans.h"
#include "quantize_row.h"
#include "tile_blocks.h"

namespace galley {
namespace GALLEY_VARIANT {

// Bytes that are prefetched ahead into the L2 cache, and from there into L1: lines on their way from memory would
// fill the buffers of L1.
constexpr int64_t kFarAhead = 16384, kNearAhead = 1024;

// One half (16 columns) of a block of codes.
template <Format kFormat> class HalfBlock {
 public:
  GALLEY_INLINE explicit HalfBlock(const uint8_t* codes) {
    _Pragma("GCC unroll 8") for (int i = 0; i < kLines; i++, codes += kWordBytes) {
      lines_[i] = _mm512_loadu_si512(codes);
      __builtin_prefetch(codes + kFarAhead, 0, 2);
      __builtin_prefetch(codes + kNearAhead);
    }
  }
  // Four codes of each column, in the lowest bits of bytes; above them may be others.
  GALLEY_INLINE __m512i step(int j) const {
    if constexpr (kFormat == Format::i8) return lines_[j];
    if constexpr (kFormat == Format::i2 || kFormat == Format::i3) {
      const __m512i low = moved(lines_[j / 4], 2 * (j % 4), 0);
      return kFormat == Format::i2 ? low : with_bits(low, 0x04, moved(lines_[kLines - 1], j, 2));
    }
    const __m512i low = moved(lines_[j % 4], j / 4 * 4, 0);
    if constexpr (kFormat == Format::i5) return with_bits(low, 0x10, moved(lines_[4], j, 4));
    if constexpr (kFormat == Format::i6) {
      return with_bits(low, 0x30, moved(lines_[kLines - 2 + j / 4], j % 4 * 2, 4));
    }
    return low;
  }

 private:
  static constexpr int kLines = kFormat == Format::i2   ? 2
                                : kFormat == Format::i3 ? 3
                                : kFormat == Format::i5 ? 5
                                : kFormat == Format::i6 ? 6
                                : kFormat == Format::i8 ? 8
                                                        : 4;

  // Bit `from` of each byte becomes bit `to`; bits of neighbours come in.
  static GALLEY_INLINE __m512i moved(const __m512i& line, int from, int to) {
    const WordPart words = (WordPart)line;
    return (__m512i)(from < to ? words << (to - from) : words >> (from - to));
  }
  // Bits `mask` of each byte from `bits`, the others from `low`.
  static GALLEY_INLINE __m512i with_bits(const __m512i& low, char mask, const __m512i& bits) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(mask), bits, low, 0xca);
  }

  __m512i lines_[kLines];
};

// Levels of a weight's codes, as `HalfBlock::step` has them; with a zero for each scale those of signed codes
// of five bits.
class CodeLevels {
 public:
  explicit CodeLevels(const LinearJob& job) {
    for (int i = 0; i < kMostLevels; i++) words_[i] = bf16_from_float(level(job, i));
    for (int i = 0; i < kShort; i++) floats_[i] = float_from_bf16(words_[i]);
    zeros_[0] = 8388608.0f + static_cast<float>(job.weight.zero);
    zeros_[1] = 32768.0f + static_cast<float>(job.weight.zero);
  }

  // Of each lane: codes 0 and 1 as bf16, and codes 2 and 3.
  template <Format kFormat> GALLEY_INLINE void pairs(const __m512i& codes, void* first, void* second) const {
    constexpr __mmask32 kUpper = 0xaaaaaaaau;
    if constexpr (kFormat != Format::i8) {
      const __m512i words = _mm512_load_si512(words_), others = _mm512_load_si512(words_ + kShort);
      const auto look_up = [&](const __m512i& places) __attribute__((always_inline)) {
        return kFormat == Format::i6 ? _mm512_permutex2var_epi16(words, places, others)
                                     : _mm512_permutexvar_epi16(places, words);
      };
      const __m512i apart = _mm512_mask_blend_epi16(kUpper, codes, _mm512_slli_epi32(codes, 8));
      const __m512i last = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x0038003000180010), codes);
      _mm512_store_si512(first, look_up(apart));
      _mm512_store_si512(second, look_up(last));
    } else {
      const Four four = floats<kFormat>(codes);
      const auto pair = [](const Float& low, const Float& high) __attribute__((always_inline)) {
        const __m512i lower = _mm512_srli_epi32((__m512i)low.part[0], 16);
        return _mm512_mask_blend_epi16(kUpper, lower, (__m512i)high.part[0]);
      };
      _mm512_store_si512(first, pair(four.k[0], four.k[1]));
      _mm512_store_si512(second, pair(four.k[2], four.k[3]));
    }
  }

  // The four codes of each lane.
  template <Format kFormat> GALLEY_INLINE Four floats(const __m512i& codes) const {
    const Int four{{(IntPart)codes}};
    if constexpr (is_short(kFormat)) {
      return {{look_up(four), look_up(shift_right<8>(four)), look_up(shift_right<16>(four)),
               look_up(shift_right<24>(four))}};
    } else {
      constexpr int kMask = kFormat == Format::i6 ? 63 : 255;
      const Int upper = shift_right<16>(four);
      return {{lower<kMask>(four), second<kMask>(four), lower<kMask>(upper), second<kMask>(upper)}};
    }
  }

 private:
  static constexpr int kShort = 32, kMostLevels = 64;  // that are looked up as float32, and as bf16
  static constexpr bool is_short(Format format) { return format != Format::i6 && format != Format::i8; }

  static float level(const LinearJob& job, int code) {
    const WeightLayout& w = job.weight;
    if (w.offset == Offset::zeros) return static_cast<float>(code < kShort / 2 ? code : code - kShort);
    code &= (1 << w.bits()) - 1;
    if (w.table == CodeTable::floats) return reinterpret_cast<const float*>(job.data)[code];
    return static_cast<float>(w.table == CodeTable::levels ? job.data[code] - 128 : code - w.zero);
  }
  GALLEY_INLINE Float look_up(const Int& codes) const {
    return Float{{_mm512_permutex2var_ps(_mm512_load_ps(floats_), (__m512i)codes.part[0],
                                         _mm512_load_ps(floats_ + kLanes))}};
  }
  // The lowest byte of each lane, and the one above it: as the last bits of 2^23 and of 2^15.
  template <int kMask> GALLEY_INLINE Float lower(const Int& codes) const {
    return as_float((codes & all(kMask)) | all(0x4b000000)) - all(zeros_[0]);
  }
  template <int kMask> GALLEY_INLINE Float second(const Int& codes) const {
    return as_float((codes & all(kMask << 8)) | all(0x47000000)) - all(zeros_[1]);
  }

  alignas(64) uint16_t words_[kMostLevels];
  alignas(64) float floats_[kShort];
  float zeros_[2];
};

// Codes of 4 bits less their zeros, of each column four times; others as they are.
template <bool kZeros> GALLEY_INLINE __m512i less_zeros(const __m512i& codes, const uint8_t* zeros) {
  if (!kZeros) return codes;
  return _mm512_sub_epi8(_mm512_and_si512(codes, _mm512_set1_epi8(15)), _mm512_load_si512(zeros));
}

// A block of codes as bf16, [16 words][32 columns][2] from `to` on.
using ToBf16 = void (*)(const CodeLevels& levels, const uint8_t* codes, const uint8_t* zeros, uint8_t* to);

template <Format kFormat, bool kZeros>
void to_bf16(const CodeLevels& levels, const uint8_t* codes, const uint8_t* zeros, uint8_t* to) {
  for (int i = 0; i < kHalves; i++, codes += 64, zeros += 64, to += 64) {
    const HalfBlock<kFormat> half(codes);
    _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) {
      uint8_t* words = to + 2 * j * kWordBytes;
      levels.pairs<kFormat>(less_zeros<kZeros>(half.step(j), zeros), words, words + kWordBytes);
    }
  }
}
inline ToBf16 to_bf16_of(const WeightLayout& w) {
  if (w.offset == Offset::zeros) return to_bf16<Format::i4, true>;
  switch (w.format) {
    case Format::i2: return to_bf16<Format::i2, false>;
    case Format::i3: return to_bf16<Format::i3, false>;
    case Format::i5: return to_bf16<Format::i5, false>;
    case Format::i6: return to_bf16<Format::i6, false>;
    case Format::i8: return to_bf16<Format::i8, false>;
    default: return to_bf16<Format::i4, false>;
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
