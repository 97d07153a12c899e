// Packing and unpacking of weights. Layouts: linear.h.
#include "pack.h"

#include <algorithm>
#include <cstring>

#include "quantize_row.h"

namespace galley {
namespace {

// Where value k of a column lies in an integer panel: its byte, and which nibble.
struct CodePlace {
  int64_t byte;
  bool high;
};

CodePlace code_place(const WeightLayout& w, int64_t column, int64_t k) {
  const int64_t block = k / kGroup, step = k % kGroup / 4, in_word = k % 4;
  const int64_t header = w.group == 0 ? kPanel * 4 : 0;  // the panel's scales come first
  const int64_t base = header + block * w.block_bytes() + w.header_bytes();
  const bool nibbles = w.format == Format::i4;
  const int64_t line = nibbles ? step % 4 : step;
  return {base + line * kPanel * 4 + column * 4 + in_word, nibbles && step >= 4};
}

// Where scale (or min) number s of a column lies.
int64_t scale_place(const WeightLayout& w, int64_t column, int64_t s, bool min) {
  const int64_t width = w.scale_f32 ? 4 : 2;
  if (w.group == 0) return column * width;
  const int64_t per_block = w.scales_per_block();
  const int64_t line = s % per_block + (min ? per_block : 0);
  return s / per_block * w.block_bytes() + line * w.scale_line_bytes() + column * width;
}

int64_t scales_per_row(const WeightLayout& w) {
  return w.group == 0 ? 1 : (w.k + w.group - 1) / w.group;
}

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

float scale_value(const WeightLayout& w, const uint8_t* at) {
  if (w.scale_f32) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, at, 2);
  return float_from_f16(half);
}

uint32_t word_at(const uint8_t* p, int64_t available) {
  uint32_t word = 0;
  if (available > 0) std::memcpy(&word, p, std::min<int64_t>(available, 4));
  return word;
}

// Codes of one column around the layout's zero, k' of them; `flaw` collects bits that do not fit.
void shift_codes(const WeightLayout& w, const CodeSource& source, int64_t row, uint8_t* codes,
                 uint32_t* flaw) {
  const uint8_t* q = source.q + row * source.q_stride;
  const int32_t shift = w.zero() - source.zero, mask = w.format == Format::i4 ? ~15 : ~255;
  uint32_t outside = 0;
  for (int64_t k = 0; k < w.k; k++) {
    const int32_t code = q[k] + shift;
    outside |= static_cast<uint32_t>(code & mask);
    codes[k] = static_cast<uint8_t>(code);
  }
  *flaw |= outside;
  // The tail meets activations of 0: any code would do.
  std::memset(codes + w.k, w.zero(), round_up(w.k, kGroup) - w.k);
}

// 32 columns of codes [32][k'] into their lines.
void store_codes(const WeightLayout& w, const uint8_t* codes, uint8_t* panel) {
  const int64_t padded = w.blocks() * kGroup;
  for (int64_t block = 0; block < w.blocks(); block++) {
    uint8_t* lines = panel + code_place(w, 0, block * kGroup).byte;
    const int64_t steps = w.format == Format::i4 ? 4 : 8;
    for (int64_t column = 0; column < kPanel; column++) {
      const uint8_t* from = codes + column * padded + block * kGroup;
      for (int64_t step = 0; step < steps; step++) {
        uint32_t word = word_at(from + 4 * step, 4);
        if (steps == 4) word |= word_at(from + 16 + 4 * step, 4) << 4;
        std::memcpy(lines + step * kPanel * 4 + column * 4, &word, 4);
      }
    }
  }
}

void store_scales(const WeightLayout& w, const void* source, int64_t stride, int64_t row,
                  int64_t column, bool min, uint8_t* panel) {
  const int64_t width = w.scale_f32 ? 4 : 2;
  const uint8_t* from = static_cast<const uint8_t*>(source) + row * stride * width;
  for (int64_t s = 0; s < scales_per_row(w); s++) {
    std::memcpy(panel + scale_place(w, column, s, min), from + s * width, width);
  }
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
  if (!w.quantised()) throw std::invalid_argument("codes need an integer format");
  if (w.has_min != (source.min != nullptr)) throw std::invalid_argument("mins do not match");
  const int64_t padded = w.blocks() * kGroup;
  std::vector<uint8_t> codes(kPanel * padded);
  uint32_t flaw = 0;
  for (int64_t p = 0; p < w.panels(); p++) {
    uint8_t* panel = out + p * w.panel_bytes();
    std::memset(panel, 0, w.panel_bytes());
    for (int64_t column = 0; column < kPanel; column++) {
      const int64_t row = p * kPanel + column;
      if (row >= w.n) {
        std::memset(codes.data() + column * padded, w.zero(), padded);
        continue;
      }
      shift_codes(w, source, row, codes.data() + column * padded, &flaw);
      store_scales(w, source.scale, source.scale_stride, row, column, false, panel);
      if (w.has_min) store_scales(w, source.min, source.scale_stride, row, column, true, panel);
    }
    store_codes(w, codes.data(), panel);
  }
  if (flaw) {
    throw std::invalid_argument(std::string("codes do not fit ") +
                                (w.format == Format::i4 ? "4 bits" : "int8 around their zero"));
  }
}

void unpack_codes(const WeightLayout& w, const uint8_t* panels, int64_t row, uint8_t* q,
                  void* scale, void* min) {
  const uint8_t* panel = panels + row / kPanel * w.panel_bytes();
  const int64_t column = row % kPanel, width = w.scale_f32 ? 4 : 2;
  for (int64_t k = 0; k < w.k; k++) {
    const CodePlace place = code_place(w, column, k);
    const uint8_t byte = panel[place.byte];
    q[k] = w.format == Format::i8 ? byte : place.high ? byte >> 4 : byte & 15;
  }
  for (int64_t s = 0; s < scales_per_row(w); s++) {
    std::memcpy(static_cast<uint8_t*>(scale) + s * width,
                panel + scale_place(w, column, s, false), width);
    if (!w.has_min) continue;
    std::memcpy(static_cast<uint8_t*>(min) + s * width, panel + scale_place(w, column, s, true),
                width);
  }
}

void unpack_row(const WeightLayout& w, const uint8_t* panels, int64_t row, float* out) {
  const uint8_t* panel = panels + row / kPanel * w.panel_bytes();
  const int64_t column = row % kPanel;
  if (!w.quantised()) {
    for (int64_t k = 0; k < w.k; k++) {
      if (w.format == Format::f32) {
        std::memcpy(out + k, panel + (k * kPanel + column) * 4, 4);
      } else {
        uint16_t half;
        std::memcpy(&half, panel + (k / 2 * kPanel + column) * 4 + k % 2 * 2, 2);
        out[k] = float_from_bf16(half);
      }
    }
    return;
  }
  for (int64_t k = 0; k < w.k; k++) {
    const CodePlace place = code_place(w, column, k);
    const uint8_t byte = panel[place.byte];
    const int32_t code = w.format == Format::i8 ? byte : place.high ? byte >> 4 : byte & 15;
    const int64_t s = w.group == 0 ? 0 : k / w.group;
    out[k] = scale_value(w, panel + scale_place(w, column, s, false)) *
             static_cast<float>(code - w.zero());
    if (w.has_min) out[k] += scale_value(w, panel + scale_place(w, column, s, true));
  }
}

}  // namespace galley
