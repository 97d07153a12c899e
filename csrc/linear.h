// Layouts shared by everything that makes or reads linear's inputs: activation rows and packed
// weights. The layouts are the same for every instruction set.
//
// Activation rows, one after the other at `activation_bytes`:
//   f32, bf16   [k]
//   q8          [k'] int8 | [k' / 32] f32 scale | [k' / 32] int32 sum | [k' / 32] int32 half
//               value = scale[i / 32] * q[i]; sum = of a group's 32 q, half = of its first 16
//   q8_row      [k'] int8 | f32 scale | int32 sum
// k' is k rounded up to 32, the tail is 0; rows of q8 and q8_row are padded to 64 bytes.
#pragma once
#include <cstdint>

#include "program.h"

namespace galley {

constexpr int64_t kGroup = 32;  // values per activation scale

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline int64_t activation_bytes(Kind kind, int64_t k) {
  const int64_t padded = round_up(k, kGroup);
  switch (kind) {
    case Kind::f32: return 4 * k;
    case Kind::bf16: return 2 * k;
    case Kind::q8: return round_up(padded + padded / kGroup * 12, 64);
    case Kind::q8_row: return round_up(padded + 8, 64);
  }
  return 0;
}

// Where the parts of one q8 row lie.
struct Q8Row {
  int8_t* q;
  float* scale;
  int32_t* sum;
  int32_t* half;
  Q8Row(void* row, int64_t k) : q(static_cast<int8_t*>(row)) {
    const int64_t padded = round_up(k, kGroup), groups = padded / kGroup;
    scale = reinterpret_cast<float*>(q + padded);
    sum = reinterpret_cast<int32_t*>(scale + groups);
    half = sum + groups;
  }
};

}  // namespace galley
