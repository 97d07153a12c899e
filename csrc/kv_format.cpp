#include "kv_format.h"

#include <cmath>
#include <cstring>

namespace galley {
namespace {

struct Magnitudes {
  alignas(64) uint16_t of[kKvKinds][128];

  Magnitudes() {
    for (int code = 0; code < 128; code++) {
      set(KvKind::e4m3, code, code == 127 ? NAN : minifloat(code, 3, 7));
      set(KvKind::e5m2, code, code > 124 ? NAN : code == 124 ? INFINITY : minifloat(code, 2, 15));
      set(KvKind::int8, code, static_cast<float>(code));
    }
  }

 private:
  static float minifloat(int code, int mantissa_bits, int bias) {
    const int ones = 1 << mantissa_bits, exponent = code / ones, mantissa = code % ones;
    const int significand = exponent > 0 ? ones + mantissa : mantissa;
    return std::ldexp(static_cast<float>(significand),
                      (exponent > 0 ? exponent : 1) - bias - mantissa_bits);
  }
  void set(KvKind kind, int code, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    of[static_cast<int>(kind)][code] = static_cast<uint16_t>(bits >> 16);
  }
};

}  // namespace

const uint16_t* kv_magnitudes(KvKind kind) {
  static const Magnitudes magnitudes;
  return kind > KvKind::bf16 ? magnitudes.of[static_cast<int>(kind)] : nullptr;
}

}  // namespace galley
