// Number formats of keys and values in the cache.
//
// Numbers of eight bits are codes: a sign and seven bits, whose magnitude a table gives. e4m3 and
// e5m2 are those of the OCP (e4m3 without infinities); int8 is a sign and an integer up to 127. All
// magnitudes are bf16 numbers, so that a code is converted exactly.
//
// A code stands for magnitude * scale. The scale is one of the layer, or one of each token and head
// (`token_scales`), which lies behind the codes of the page's K, and of its V.
#pragma once
#include <cstdint>

namespace galley {

enum class KvKind : int { f32 = 0, bf16 = 1, e4m3 = 2, e5m2 = 3, int8 = 4 };
constexpr int kKvKinds = 5;

struct KvFormat {
  KvKind kind = KvKind::f32;
  bool token_scales = false;
  float k_scale = 1.0f, v_scale = 1.0f;  // of the layer

  __attribute__((always_inline)) bool is_f32() const { return kind == KvKind::f32; }
  __attribute__((always_inline)) bool is_codes() const { return kind > KvKind::bf16; }
  __attribute__((always_inline)) int64_t item_bytes() const {
    return is_f32() ? 4 : is_codes() ? 1 : 2;
  }
  // Bytes of the scales of a page's K or V of one head.
  __attribute__((always_inline)) int64_t scale_bytes() const { return token_scales ? 64 : 0; }
};

// The bf16 numbers of the 128 codes without a sign; null for kinds that are no codes.
const uint16_t* kv_magnitudes(KvKind kind);

}  // namespace galley
