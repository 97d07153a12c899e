// Packing and unpacking of weights. Layouts: linear.h.
#include "pack.h"

#include <algorithm>
#include <cstring>

#include "quantize_row.h"

namespace galley {
namespace {

// One block of 32 values of K of a panel: where its scales, mins and codes are.
struct BlockView {
  const WeightLayout& w;
  int64_t at;  // byte of the panel

  BlockView(const WeightLayout& w, int64_t block)
      : w(w), at((w.group == 0 ? kPanel * 4 : 0) + block * w.block_bytes()) {}
  // Line of four values of each column: step 0 .. 7, of i4 0 .. 3 (each with step + 4).
  int64_t codes(int64_t step, int64_t column) const {
    return at + w.header_bytes() + step * kPanel * 4 + column * 4;
  }
  int64_t scale(int64_t sub, int64_t column) const {
    return at + sub * w.scale_line_bytes() + column * (w.scale_f32 ? 4 : 2);
  }
  int64_t min(int64_t sub, int64_t column) const {
    return scale(w.scales_per_block() + sub, column);
  }
};

int64_t scales_per_row(const WeightLayout& w) {
  return w.group == 0 ? 1 : (w.k + w.group - 1) / w.group;
}

// Calls visit(index of the scale in its row, byte of the panel, its min's byte) for a column.
template <class Visit>
void each_scale(const WeightLayout& w, int64_t column, const Visit& visit) {
  if (w.group == 0) return visit(0, column * 4, 0);
  const int64_t per_block = w.scales_per_block(), count = scales_per_row(w);
  for (int64_t block = 0; block < w.blocks(); block++) {
    const BlockView view(w, block);
    for (int64_t sub = 0; sub < per_block && block * per_block + sub < count; sub++) {
      visit(block * per_block + sub, view.scale(sub, column), view.min(sub, column));
    }
  }
}

// The 32 codes of one column of a block.
void load_codes(const BlockView& view, const uint8_t* panel, int64_t column, uint8_t* codes) {
  const bool nibbles = view.w.format == Format::i4;
  for (int64_t step = 0; step < (nibbles ? 4 : 8); step++) {
    uint32_t word;
    std::memcpy(&word, panel + view.codes(step, column), 4);
    const uint32_t low = nibbles ? word & 0x0f0f0f0fu : word, high = word >> 4 & 0x0f0f0f0fu;
    std::memcpy(codes + 4 * step, &low, 4);
    if (nibbles) std::memcpy(codes + 16 + 4 * step, &high, 4);
  }
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
  const int64_t padded = w.blocks() * kGroup, steps = w.format == Format::i4 ? 4 : 8;
  for (int64_t block = 0; block < w.blocks(); block++) {
    const BlockView view(w, block);
    for (int64_t column = 0; column < kPanel; column++) {
      const uint8_t* from = codes + column * padded + block * kGroup;
      for (int64_t step = 0; step < steps; step++) {
        uint32_t word, high = 0;
        std::memcpy(&word, from + 4 * step, 4);
        if (steps == 4) std::memcpy(&high, from + 16 + 4 * step, 4);
        word |= high << 4;
        std::memcpy(panel + view.codes(step, column), &word, 4);
      }
    }
  }
}

template <class Scale>
void store_scales(const WeightLayout& w, const CodeSource& source, int64_t row, int64_t column,
                  uint8_t* panel) {
  const Scale* scale = static_cast<const Scale*>(source.scale) + row * source.scale_stride;
  const Scale* min = static_cast<const Scale*>(source.min);
  if (min) min += row * source.scale_stride;
  each_scale(w, column, [&](int64_t i, int64_t scale_at, int64_t min_at) {
    std::memcpy(panel + scale_at, scale + i, sizeof(Scale));
    if (min) std::memcpy(panel + min_at, min + i, sizeof(Scale));
  });
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
      auto store = w.scale_f32 ? store_scales<float> : store_scales<uint16_t>;
      store(w, source, row, column, panel);
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
  for (int64_t k = 0; k < w.k; k += kGroup) {
    uint8_t codes[kGroup];
    load_codes(BlockView(w, k / kGroup), panel, column, codes);
    std::memcpy(q + k, codes, std::min(kGroup, w.k - k));
  }
  each_scale(w, column, [&](int64_t i, int64_t scale_at, int64_t min_at) {
    std::memcpy(static_cast<uint8_t*>(scale) + i * width, panel + scale_at, width);
    if (w.has_min) std::memcpy(static_cast<uint8_t*>(min) + i * width, panel + min_at, width);
  });
}

namespace {

void unpack_dense_row(const WeightLayout& w, const uint8_t* panel, int64_t column, float* out) {
  const uint8_t* words = panel + column * 4;
  for (int64_t k = 0; k < w.k; k++) {
    if (w.format == Format::f32) {
      std::memcpy(out + k, words + k * kPanel * 4, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, words + k / 2 * kPanel * 4 + k % 2 * 2, 2);
      out[k] = float_from_bf16(half);
    }
  }
}

// Values of one block: up to 32, in parts that share a scale.
void unpack_block(const BlockView& view, const uint8_t* panel, int64_t column, int64_t count,
                  float* out) {
  const WeightLayout& w = view.w;
  const int64_t group = w.group == 16 ? 16 : kGroup;
  uint8_t codes[kGroup];
  load_codes(view, panel, column, codes);
  for (int64_t first = 0; first < count; first += group) {
    const int64_t sub = first / group, last = std::min(first + group, count);
    const int64_t at = w.group == 0 ? column * 4 : view.scale(sub, column);
    const float scale = scale_value(w, panel + at);
    for (int64_t i = first; i < last; i++) {
      out[i] = scale * static_cast<float>(codes[i] - w.zero());
    }
    if (!w.has_min) continue;
    const float min = scale_value(w, panel + view.min(sub, column));
    for (int64_t i = first; i < last; i++) out[i] += min;
  }
}

}  // namespace

void unpack_row(const WeightLayout& w, const uint8_t* panels, int64_t row, float* out) {
  const uint8_t* panel = panels + row / kPanel * w.panel_bytes();
  const int64_t column = row % kPanel;
  if (!w.quantised()) return unpack_dense_row(w, panel, column, out);
  for (int64_t k = 0; k < w.k; k += kGroup) {
    const BlockView view(w, k / kGroup);
    unpack_block(view, panel, column, std::min(kGroup, w.k - k), out + k);
  }
}

}  // namespace galley
