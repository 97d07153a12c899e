// Packing and unpacking of weights. Layouts: linear.h.
#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "quantize_row.h"

namespace galley {
namespace {

float float_from_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  uint32_t bits;
  if (exponent == 31) {
    bits = 0x7f800000u | fraction << 13;
  } else if (exponent != 0) {
    bits = (exponent + 112) << 23 | fraction << 13;
  } else {  // zero and subnormals: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &magnitude, 4);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}


float float_at(const uint8_t* at) {
  float value;
  std::memcpy(&value, at, 4);
  return value;
}
uint16_t half_at(const uint8_t* at) {
  uint16_t half;
  std::memcpy(&half, at, 2);
  return half;
}

constexpr int64_t kHalfLine = kPanel * 2;  // of f16: one number of each column
constexpr int64_t kSixes = 12;             // scales of s6 that have bytes of their own

// One column of a header. `Byte` is uint8_t or const uint8_t.
template <class Byte> struct HeaderColumn {
  const WeightLayout& w;
  int64_t column;
  int64_t super_bytes = w.super_bytes(), entries = w.entries();
  int64_t scale_at = w.scale == Scale::nested ? w.nested_codes_at() + column
                     : w.two_level() ? (w.has_mins() ? 2 : 1) * super_bytes * kPanel + column
                     : w.scale == Scale::halves ? column / 16 * 4
                                                : column * w.scale_bytes();
  int64_t line = w.two_level() ? kPanel : w.scale_line_bytes();  // from entry to entry
  Byte* header = nullptr;

  HeaderColumn(const WeightLayout& w, int64_t column, Byte* header = nullptr)
      : w(w), column(column), header(header) {}

  // Scales and mins of one level; of two a byte: i8, u4, e4m3, the first twelve of s6.
  Byte* scale(int64_t entry) const { return header + scale_at + entry * line; }
  Byte* min(int64_t entry) const { return scale(entries + entry); }
  // The factor of scales of two levels.
  Byte* super_scale() const { return header + column * super_bytes; }
  Byte* super_min() const { return header + kHalfLine + column * 2; }
  // Of nested scales.
  Byte* place() const { return header + column * 4; }
  Byte* factors() const { return header + kPanel * 4 + column / 16 * w.factors() * 4; }
  // Byte 0 .. 11 of u6.
  Byte* six(int64_t i) const { return header + 2 * kHalfLine + i * kPanel + column; }
  Byte* zeros(int64_t entry) const {
    const int64_t zero_line = w.zero_line_bytes();
    return header + w.zeros_at() + entry * zero_line + column % zero_line;
  }
  int64_t zeros_shift() const { return column / w.zero_line_bytes() * w.zero_bits(); }
};

struct Six {
  uint8_t scale, min;
};
Six six_bits(const HeaderColumn<const uint8_t>& h, int64_t entry) {
  const int64_t i = entry % 4;
  const uint8_t low = *h.six(i), mid = *h.six(4 + i), high = *h.six(8 + i);
  if (entry < 4) return {static_cast<uint8_t>(low & 63), static_cast<uint8_t>(mid & 63)};
  return {static_cast<uint8_t>((high & 15) | (low >> 2 & 48)),
          static_cast<uint8_t>(high >> 4 | (mid >> 2 & 48))};
}
// Into bytes that are 0 so far.
void set_six_bits(const HeaderColumn<uint8_t>& h, int64_t entry, Six value) {
  const int64_t i = entry % 4;
  if (entry < 4) {
    *h.six(i) |= value.scale;
    *h.six(4 + i) |= value.min;
    return;
  }
  *h.six(i) |= value.scale >> 4 << 6;
  *h.six(4 + i) |= value.min >> 4 << 6;
  *h.six(8 + i) |= (value.scale & 15) | value.min << 4;
}

// 6-bit scales around 32: the last four lie in the upper bits of the others.
int32_t signed_six(const HeaderColumn<const uint8_t>& h, int64_t entry) {
  if (entry < kSixes) return (*h.scale(entry) & 63) - 32;
  const int64_t i = entry - kSixes;
  return (*h.scale(i) >> 6 | (*h.scale(i + 4) >> 4 & 12) | (*h.scale(i + 8) >> 2 & 48)) - 32;
}
// Into bytes that are 0 so far.
void set_signed_six(const HeaderColumn<uint8_t>& h, int64_t entry, uint8_t code) {
  if (entry < kSixes) {
    *h.scale(entry) |= code;
    return;
  }
  for (int64_t i = 0; i < 3; i++) *h.scale(entry - kSixes + 4 * i) |= (code >> 2 * i & 3) << 6;
}

float float_from_e4m3(uint8_t code) {
  const int magnitude = code & 127, exponent = magnitude >> 3, fraction = magnitude & 7;
  const float value = exponent ? std::ldexp(static_cast<float>(8 + fraction), exponent - 10)
                               : std::ldexp(static_cast<float>(fraction), -9);
  return code < 128 ? value : -value;
}

float one_level(const WeightLayout& w, const uint8_t* at) {
  if (w.scale == Scale::e8m0) return std::ldexp(1.0f, *at - 128);
  if (w.scale == Scale::f32 || w.scale == Scale::halves) return float_at(at);
  return w.scale == Scale::bf16 ? float_from_bf16(half_at(at)) : float_from_f16(half_at(at));
}

// Properties that the values of one scale share.
struct Affine {
  float scale, min;
  int32_t zero;
};
Affine affine_of(const HeaderColumn<const uint8_t>& h, int64_t entry, const uint8_t* data) {
  const WeightLayout& w = h.w;
  if (w.scale == Scale::nested) {
    int32_t place;
    std::memcpy(&place, h.place(), 4);
    const float level = float_at(data + 4 * ((1 << w.bits()) + *h.scale(entry)));
    const float product = level * float_at(h.factors() + (place + entry) / 256 * 4);
    return {product + float_at(h.factors() + (w.factors() - 1) * 4), 0.0f, w.zero};
  }
  if (w.scale == Scale::u6) {
    const Six six = six_bits(h, entry);
    return {float_from_f16(half_at(h.super_scale())) * six.scale,
            float_from_f16(half_at(h.super_min())) * six.min, w.zero};
  }
  if (w.scale == Scale::u4) {
    const uint8_t both = *h.scale(entry);
    return {float_from_f16(half_at(h.super_scale())) * (both & 15),
            float_from_f16(half_at(h.super_min())) * (both >> 4), w.zero};
  }
  if (w.scale == Scale::i8) {
    const auto scale = static_cast<int8_t>(*h.scale(entry));
    return {float_from_f16(half_at(h.super_scale())) * scale, 0.0f, w.zero};
  }
  if (w.scale == Scale::s6) {
    return {float_from_f16(half_at(h.super_scale())) * signed_six(h, entry), 0.0f, w.zero};
  }
  if (w.scale == Scale::e4m3) {
    return {float_at(h.super_scale()) * float_from_e4m3(*h.scale(entry)), 0.0f, w.zero};
  }
  Affine a{one_level(w, h.scale(entry)), 0.0f, w.zero};
  if (w.has_mins()) a.min = one_level(w, h.min(entry));
  if (w.offset == Offset::fractions) a.min *= -a.scale;
  if (w.offset == Offset::zeros) {
    a.zero = *h.zeros(entry) >> h.zeros_shift() & ((1 << w.zero_bits()) - 1);
  }
  return a;
}

// The lines of a block for one column: its 32 codes, four a word.
struct BlockColumn {
  const WeightLayout& w;
  int64_t column;

  uint32_t word(const uint8_t* block, int64_t line) const {
    uint32_t word;
    std::memcpy(&word, block + line * kPanel * 4 + column * 4, 4);
    return word;
  }

  // Block `number` of its span, at `block`.
  void load(const uint8_t* block, int64_t number, uint8_t* codes) const {
    if (w.format == Format::t2) return load_trits(block, number % kTritBlocks, codes);
    const int64_t extra = w.bits() - 4;  // 5 and 6 bits: so many above a nibble
    for (int64_t j = 0; j < 8; j++) {
      uint32_t step;
      if (w.format == Format::i8) {
        step = word(block, j);
      } else if (w.format == Format::i1) {
        step = word(block, 0) >> j & 0x01010101u;
      } else if (w.bits() < 4) {
        step = word(block, j / 4) >> j % 4 * 2 & 0x03030303u;
        if (w.format == Format::i3) step |= (word(block, 2) >> j & 0x01010101u) << 2;
      } else {
        step = word(block, j % 4) >> j / 4 * 4 & 0x0f0f0f0fu;
        if (extra == 1) step |= (word(block, 4) >> j & 0x01010101u) << 4;
        if (extra == 2) step |= (word(block, 4 + j / 4) >> j % 4 * 2 & 0x03030303u) << 4;
      }
      std::memcpy(codes + 4 * j, &step, 4);
    }
  }
  void load_trits(const uint8_t* block, int64_t number, uint8_t* codes) const {
    const uint8_t* first = block - number * w.block_bytes();
    for (int64_t i = 0; i < kGroup; i++) {
      const TritPlace at = trit_place(number, i / 4);
      const uint8_t byte = first[at.line * kPanel * 4 + column * 4 + i % 4];
      codes[i] = static_cast<uint8_t>(byte * kPowersOf3[at.digit]) * 3 >> 8;
    }
  }
};

// A word of each of four columns.
typedef uint32_t Four __attribute__((vector_size(16)));

void transpose(Four (&rows)[4]) {
  const Four a = __builtin_shuffle(rows[0], rows[1], Four{0, 4, 1, 5});
  const Four b = __builtin_shuffle(rows[2], rows[3], Four{0, 4, 1, 5});
  const Four c = __builtin_shuffle(rows[0], rows[1], Four{2, 6, 3, 7});
  const Four d = __builtin_shuffle(rows[2], rows[3], Four{2, 6, 3, 7});
  rows[0] = __builtin_shuffle(a, b, Four{0, 1, 4, 5});
  rows[1] = __builtin_shuffle(a, b, Four{2, 3, 6, 7});
  rows[2] = __builtin_shuffle(c, d, Four{0, 1, 4, 5});
  rows[3] = __builtin_shuffle(c, d, Four{2, 3, 6, 7});
}

// The 32 codes of a block of four columns, `stride` bytes apart, into its lines at `to`.
template <Format F> void store_four(const uint8_t* codes, int64_t stride, uint8_t* to) {
  Four step[2][4];  // four codes of each column
  for (int i = 0; i < 2; i++) {
    for (int c = 0; c < 4; c++) std::memcpy(&step[i][c], codes + c * stride + 16 * i, 16);
    transpose(step[i]);
  }
  auto set = [to](int64_t line, const Four& words) {
    std::memcpy(to + line * kPanel * 4, &words, 16);
  };
  if constexpr (F == Format::i8) {
    for (int j = 0; j < 8; j++) set(j, step[j / 4][j % 4]);
    return;
  }
  Four upper[2] = {};   // pairs of bits above a nibble; of i2 and i3 those of the codes
  Four single = {};     // a bit above others; of i1 that of the codes
  constexpr int kBelow = F == Format::i1 ? 0 : F == Format::i3 ? 2 : 4;
  constexpr int kPairs = F == Format::i6 ? 4 : 0;
  for (int i = 0; i < 2; i++) {
    for (int j = 0; j < 4; j++) {
      upper[i] |= (step[i][j] >> kPairs & 0x03030303u) << 2 * j;
      single |= (step[i][j] >> kBelow & 0x01010101u) << (4 * i + j);
    }
  }
  if constexpr (F == Format::i1) {
    set(0, single);
  } else if constexpr (F == Format::i2 || F == Format::i3) {
    set(0, upper[0]), set(1, upper[1]);
    if (F == Format::i3) set(2, single);
  } else {
    for (int j = 0; j < 4; j++) {
      set(j, (step[0][j] & 0x0f0f0f0fu) | (step[1][j] & 0x0f0f0f0fu) << 4);
    }
    if (F == Format::i5) set(4, single);
    if (F == Format::i6) set(4, upper[0]), set(5, upper[1]);
  }
}

void check_arrays(const WeightLayout& w, const CodeSource& s) {
  if (!w.quantised()) throw std::invalid_argument("codes need an integer format");
  const bool mins = w.has_mins(), zeros = w.offset == Offset::zeros;
  const bool nested = w.scale == Scale::nested, supers = w.two_level() || nested;
  const bool two_mins = (mins && w.two_level()) || nested;
  if (s.q == nullptr || s.scale == nullptr) throw std::invalid_argument("codes or scales missing");
  if (mins != (s.min != nullptr)) throw std::invalid_argument("mins do not match the format");
  if (zeros != (s.zeros != nullptr)) throw std::invalid_argument("zeros do not match the format");
  if (supers != (s.super_scale != nullptr) || two_mins != (s.super_min != nullptr)) {
    throw std::invalid_argument("super scales do not match the format");
  }
  if ((w.table != CodeTable::none) != (s.table != nullptr)) {
    throw std::invalid_argument("the table does not match the format");
  }
}

// A number of 1, 2 or 4 bytes.
void copy_number(uint8_t* to, const uint8_t* from, int64_t width) {
  if (width == 1) *to = *from;
  if (width == 2) std::memcpy(to, from, 2);
  if (width == 4) std::memcpy(to, from, 4);
}

// Scales `first` .. of a row `s` into its header. `unfit` collects bits that have no place.
void store_scales(const HeaderColumn<uint8_t>& h, const CodeSource& s, int64_t first, int64_t count,
                  uint32_t* unfit) {
  const WeightLayout& w = h.w;
  const int64_t width = w.scale_bytes();
  const auto* scale = static_cast<const uint8_t*>(s.scale) + first * width;
  const auto* min = s.min ? static_cast<const uint8_t*>(s.min) + first * width : nullptr;
  for (int64_t e = 0; e < count; e++, scale += width) {
    if (w.scale == Scale::u6) {
      *unfit |= (*scale | min[e]) & ~63u;
      set_six_bits(h, e, {*scale, min[e]});
    } else if (w.scale == Scale::u4) {
      *unfit |= (*scale | min[e]) & ~15u;
      *h.scale(e) = static_cast<uint8_t>(*scale | min[e] << 4);
    } else if (w.scale == Scale::s6) {
      const auto code = static_cast<uint8_t>(*scale + 32);
      *unfit |= code & ~63u;
      set_signed_six(h, e, code & 63);
    } else if (w.scale == Scale::halves && h.column % 16 != 0) {
      *unfit |= std::memcmp(h.scale(e), scale, width) != 0;
    } else {
      copy_number(h.scale(e), scale, width);
      if (min) copy_number(h.min(e), min + e * width, width);
    }
    if (s.zeros) {
      const uint8_t zero = s.zeros[first + e];
      *unfit |= zero >> w.bits();
      *h.zeros(e) |= static_cast<uint8_t>(zero << h.zeros_shift());
    }
  }
}

// A row `s` into one column of the headers of a panel that is 0 so far.
void store_headers(const WeightLayout& w, const CodeSource& s, int64_t column, uint8_t* panel,
                   uint32_t* unfit) {
  HeaderColumn<uint8_t> h(w, column);
  const int64_t scales = w.scales(), spans = w.spans(), blocks = w.span_blocks();
  const int64_t step = w.header_at(blocks), width = h.super_bytes;
  for (int64_t span = 0; span < spans; span++) {
    const int64_t first = span * h.entries;
    h.header = panel + span * step;
    store_scales(h, s, first, std::min(h.entries, scales - first), unfit);
    if (w.scale == Scale::nested) {
      std::memcpy(h.place(), s.super_min, 4);
      std::memcpy(h.factors(), s.super_scale, w.factors() * 4);
    }
    if (!w.two_level()) continue;
    copy_number(h.super_scale(), static_cast<const uint8_t*>(s.super_scale) + span * width, width);
    if (s.super_min) {
      copy_number(h.super_min(), static_cast<const uint8_t*>(s.super_min) + span * width, width);
    }
  }
}

// Codes of a panel's columns, `stride` bytes apart, into its blocks.
template <Format F>
void store_codes(const WeightLayout& w, const uint8_t* codes, int64_t stride, uint8_t* panel) {
  for (int64_t block = 0; block < w.blocks(); block++) {
    uint8_t* to = panel + w.block_at(block);
    for (int64_t column = 0; column < kPanel; column += 4) {
      store_four<F>(codes + column * stride + block * kGroup, stride, to + column * 4);
    }
  }
}

template <>
void store_codes<Format::t2>(const WeightLayout& w, const uint8_t* codes, int64_t stride, uint8_t* panel) {
  for (int64_t block = 0; block < w.blocks(); block += kTritBlocks) {
    uint8_t* to = panel + w.block_at(block);
    for (int64_t column = 0; column < kPanel; column++) {
      const uint8_t* q = codes + column * stride + block * kGroup;
      int numbers[kTritLines * 4] = {};
      for (int64_t digit = 0; digit < 5; digit++) {
        for (int& number : numbers) number *= 3;
        for (int i = 0; i < 32; i++) numbers[i] += q[32 * digit + i];
        for (int i = 0; i < 16; i++) numbers[32 + i] += q[160 + 16 * digit + i];
        for (int i = 0; i < 4 && digit < 4; i++) numbers[48 + i] += q[240 + 4 * digit + i];
      }
      for (int64_t i = 0; i < kTritLines * 4; i++) {
        to[i / 4 * kPanel * 4 + column * 4 + i % 4] = static_cast<uint8_t>((numbers[i] * 256 + 242) / 243);
      }
    }
  }
}

using StoreCodes = void (*)(const WeightLayout&, const uint8_t*, int64_t, uint8_t*);
StoreCodes store_codes_of(Format format) {
  switch (format) {
    case Format::i1: return store_codes<Format::i1>;
    case Format::i2: return store_codes<Format::i2>;
    case Format::i3: return store_codes<Format::i3>;
    case Format::i5: return store_codes<Format::i5>;
    case Format::i6: return store_codes<Format::i6>;
    case Format::i8: return store_codes<Format::i8>;
    case Format::t2: return store_codes<Format::t2>;
    default: return store_codes<Format::i4>;
  }
}

void store_table(const WeightLayout& w, const void* table, uint8_t* out) {
  std::memset(out, 0, w.table_bytes());
  if (w.table == CodeTable::levels) {
    for (int i = 0; i < 16; i++) out[i] = static_cast<const uint8_t*>(table)[i] ^ 0x80;
  } else if (w.table == CodeTable::floats) {
    std::memcpy(out, table, 4 * w.table_floats());
  }
}

// Packs all panels. `read(row, q)` writes the k codes of a row to `q` and returns its scales; it is
// called in order of the rows.
template <class Read> void pack_panels(const WeightLayout& w, uint8_t* out, Read read) {
  // Columns lie in different sets of the cache. Missing columns and the tail of k have codes of 0;
  // their scales or activations are 0.
  const int64_t stride = w.blocks() * kGroup + 64;
  std::vector<uint8_t> codes(kPanel * stride);
  const StoreCodes store = store_codes_of(w.format);
  uint32_t unfit = 0;
  for (int64_t p = 0; p < w.panels(); p++) {
    uint8_t* panel = out + w.table_bytes() + p * w.panel_bytes();
    for (int64_t block = 0; block < w.blocks(); block += w.span_blocks()) {
      std::memset(panel + w.header_at(block), 0, w.header_bytes());
    }
    const int64_t columns = std::min(kPanel, w.n - p * kPanel);
    if (columns < kPanel) std::fill(codes.begin(), codes.end(), uint8_t{0});
    for (int64_t column = 0; column < columns; column++) {
      const CodeSource row = read(p * kPanel + column, codes.data() + column * stride);
      store_headers(w, row, column, panel, &unfit);
    }
    store(w, codes.data(), stride, panel);
  }
  if (unfit) throw std::invalid_argument("zeros or scales do not fit their bits");
}

}  // namespace

void pack_dense(const WeightLayout& w, const DenseSource& source, uint8_t* out) {
  if (w.quantised()) throw std::invalid_argument("dense values need a dense format");
  const bool pairs = w.format == Format::bf16;
  const int64_t words = pairs ? (w.k + 1) / 2 : w.k;
  std::vector<uint32_t> row_words(words);
  for (int64_t row = 0; row < w.panels() * kPanel; row++) {
    const int64_t from = row * source.stride;
    std::fill(row_words.begin(), row_words.end(), 0);
    for (int64_t k = 0; row < w.n && k < w.k; k++) {
      const auto* f32 = static_cast<const float*>(source.values) + from;
      const auto* bf16 = static_cast<const uint16_t*>(source.values) + from;
      if (pairs) {
        const uint32_t value = source.bf16 ? bf16[k] : bf16_from_float(f32[k]);
        row_words[k / 2] |= value << (k % 2 * 16);
      } else {
        const float value = source.bf16 ? float_from_bf16(bf16[k]) : f32[k];
        std::memcpy(&row_words[k], &value, 4);
      }
    }
    uint8_t* column = out + row / kPanel * w.panel_bytes() + row % kPanel * 4;
    for (int64_t i = 0; i < words; i++) std::memcpy(column + i * kPanel * 4, &row_words[i], 4);
  }
}

void pack_codes(const WeightLayout& w, const CodeSource& source, uint8_t* out) {
  check_arrays(w, source);
  store_table(w, source.table, out);
  uint32_t used = 0;
  auto part = [](const void* array, int64_t at) -> const void* {
    return array == nullptr ? nullptr : static_cast<const uint8_t*>(array) + at;
  };
  const uint32_t more = w.format == Format::t2;  // 3 is no trit
  pack_panels(w, out, [&](int64_t row, uint8_t* codes) {
    const uint8_t* q = source.q + row * w.k;
    for (int64_t k = 0; k < w.k; k++) used |= q[k] + more;
    std::memcpy(codes, q, w.k);
    CodeSource s = source;
    const int64_t scale = row * w.scales(), super = row * w.spans() * w.super_bytes();
    s.scale = part(s.scale, scale * w.scale_bytes()), s.min = part(s.min, scale * w.scale_bytes());
    if (s.zeros) s.zeros += scale;
    s.super_scale = part(s.super_scale, super), s.super_min = part(s.super_min, super);
    if (w.scale == Scale::nested) {
      s.super_scale = part(source.super_scale, row / 16 * w.factors() * 4);
      s.super_min = part(source.super_min, row * 4);
    }
    return s;
  });
  if (used >> w.bits()) {
    throw std::invalid_argument("codes do not fit their " + std::to_string(w.bits()) + " bits");
  }
}

void pack_blocks(const BlockType& type, const uint64_t* rows, int64_t n, int64_t k, uint8_t* out) {
  const WeightLayout w = type.layout(n, k);
  store_table(w, type.levels, out);
  const int64_t scales = w.scales() * w.scale_bytes(), supers = w.spans() * w.super_bytes();
  std::vector<uint8_t> memory(2 * (scales + supers));
  CodeTarget row;
  row.scale = memory.data();
  if (w.has_mins()) row.min = memory.data() + scales;
  if (w.two_level()) row.super_scale = memory.data() + 2 * scales;
  if (w.two_level() && w.has_mins()) row.super_min = memory.data() + 2 * scales + supers;
  CodeSource read;
  read.scale = row.scale, read.min = row.min;
  read.super_scale = row.super_scale, read.super_min = row.super_min;
  pack_panels(w, out, [&](int64_t i, uint8_t* codes) {
    row.q = codes;
    decode_row(type, reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(rows[i])), k, row);
    return read;
  });
}

namespace {

void unpack_entry(const HeaderColumn<const uint8_t>& h, const CodeTarget& t, int64_t row,
                  int64_t i) {
  const WeightLayout& w = h.w;
  const int64_t entry = i % w.entries(), width = w.scale_bytes(), to = row * w.scales() + i;
  auto* scale = static_cast<uint8_t*>(t.scale) + to * width;
  auto* min = t.min ? static_cast<uint8_t*>(t.min) + to * width : nullptr;
  if (w.scale == Scale::u6) {
    const Six six = six_bits(h, entry);
    *scale = six.scale, *min = six.min;
    return;
  }
  if (w.scale == Scale::u4) {
    *scale = *h.scale(entry) & 15, *min = *h.scale(entry) >> 4;
    return;
  }
  if (w.scale == Scale::s6) {
    *scale = static_cast<uint8_t>(signed_six(h, entry));
    return;
  }
  std::memcpy(scale, h.scale(entry), width);
  if (w.has_mins()) std::memcpy(min, h.min(entry), width);
  if (w.offset == Offset::zeros) t.zeros[to] = static_cast<uint8_t>(affine_of(h, entry, nullptr).zero);
}

void unpack_dense_row(const WeightLayout& w, const uint8_t* panel, int64_t column, float* out) {
  const uint8_t* words = panel + column * 4;
  if (w.format == Format::f32) {
    for (int64_t k = 0; k < w.k; k++) std::memcpy(out + k, words + k * kPanel * 4, 4);
    return;
  }
  for (int64_t k = 0; k < w.k; k += 2, words += kPanel * 4) {
    uint16_t pair[2];
    std::memcpy(pair, words, 4);
    out[k] = float_from_bf16(pair[0]);
    if (k + 1 < w.k) out[k + 1] = float_from_bf16(pair[1]);
  }
}

// Level of a code, which has `zero`.
float level_of(const WeightLayout& w, const uint8_t* data, uint8_t code, int32_t zero) {
  if (w.table == CodeTable::floats) return float_at(data + 4 * code);
  return static_cast<float>(w.table == CodeTable::levels ? data[code] - 128 : code - zero);
}

}  // namespace

void unpack_codes(const WeightLayout& w, const uint8_t* data, const CodeTarget& t) {
  if (w.table == CodeTable::levels) {
    for (int i = 0; i < 16; i++) static_cast<uint8_t*>(t.table)[i] = data[i] ^ 0x80;
  } else if (w.table == CodeTable::floats) {
    std::memcpy(t.table, data, 4 * w.table_floats());
  }
  for (int64_t row = 0; row < w.n; row++) {
    const uint8_t* panel = w.panel(data, row / kPanel);
    const int64_t column = row % kPanel;
    for (int64_t block = 0; block < w.blocks(); block++) {
      uint8_t codes[kGroup];
      BlockColumn{w, column}.load(panel + w.block_at(block), block % w.span_blocks(), codes);
      std::memcpy(t.q + row * w.k + block * kGroup, codes, std::min(kGroup, w.k - block * kGroup));
    }
    for (int64_t i = 0; i < w.scales(); i++) {
      unpack_entry({w, column, panel + w.header_at(i / w.entries() * w.span_blocks())}, t, row, i);
    }
    if (w.scale == Scale::nested) {
      const HeaderColumn<const uint8_t> h(w, column, panel);
      std::memcpy(static_cast<uint8_t*>(t.super_min) + row * 4, h.place(), 4);
      std::memcpy(static_cast<uint8_t*>(t.super_scale) + row / 16 * w.factors() * 4, h.factors(),
                  w.factors() * 4);
    }
    for (int64_t span = 0; w.two_level() && span < w.spans(); span++) {
      const HeaderColumn<const uint8_t> h(w, column, panel + w.header_at(span * w.span_blocks()));
      const int64_t width = w.super_bytes(), to = (row * w.spans() + span) * width;
      std::memcpy(static_cast<uint8_t*>(t.super_scale) + to, h.super_scale(), width);
      if (t.super_min) std::memcpy(static_cast<uint8_t*>(t.super_min) + to, h.super_min(), width);
    }
  }
}

void unpack_row(const WeightLayout& w, const uint8_t* data, int64_t row, float* out) {
  const uint8_t* panel = w.panel(data, row / kPanel);
  const int64_t column = row % kPanel;
  if (!w.quantised()) return unpack_dense_row(w, panel, column, out);
  const int64_t part = w.group == 16 ? 16 : kGroup;  // values of a block that share a scale
  for (int64_t block = 0; block < w.blocks(); block++) {
    const HeaderColumn<const uint8_t> h(w, column, panel + w.header_at(block));
    uint8_t codes[kGroup];
    BlockColumn{w, column}.load(panel + w.block_at(block), block % w.span_blocks(), codes);
    const int64_t count = std::min(kGroup, w.k - block * kGroup);
    for (int64_t first = 0; first < count; first += part) {
      const int64_t value = block % w.span_blocks() * kGroup + first;  // of the span
      const Affine a = affine_of(h, w.group == 0 ? 0 : value / w.group, data);
      for (int64_t i = first; i < std::min(first + part, count); i++) {
        out[block * kGroup + i] = a.scale * level_of(w, data, codes[i], a.zero);
        if (w.has_mins()) out[block * kGroup + i] += a.min;
      }
    }
  }
}

}  // namespace galley
