// The part that silu_and_mul and gelu_and_mul share. Arguments: see activation.cpp. Tile: 4 rows.
#pragma once
#include <algorithm>
#include <string>

#include "activation.h"
#include "scratch.h"

namespace galley {

// Base of the ops that activate a gate and multiply it with its up projection, row by row.
class GatedActivation : public Op {
 public:
  GatedActivation(const Args& a, decltype(&generic::silu_mul_row) kernel)
      : x_(a.ptr<float>("x")), out_(a.ptr<uint8_t>("out")), n_(a.size("n")), rows_(a.rows()),
        kind_(a.kind("out_kind")), order_(a.choice("interleaved", 2, GateUp::halves)),
        out_bytes_(activation_bytes(kind_, n_)), kernel_(kernel) {
    if (order_ == GateUp::interleaved16 && n_ % 16 != 0) {
      throw std::invalid_argument("interleaved gate and up need n to be a multiple of 16, is " +
                                  std::to_string(n_));
    }
  }

  int64_t tiles(const Step& step, int) const override {
    return (row_count(step, rows_) + kTileRows - 1) / kTileRows;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t last = std::min<int64_t>(end * kTileRows, row_count(step, rows_));
    float* scratch = thread_scratch(n_);
    for (int64_t r = begin * kTileRows; r < last; r++) {
      kernel_(x_ + r * 2 * n_, n_, order_, scratch, kind_, out_ + r * out_bytes_);
    }
  }

 private:
  static constexpr int64_t kTileRows = 4;
  const float* x_;
  uint8_t* out_;
  int64_t n_;
  Dim rows_;
  Kind kind_;
  GateUp order_;
  int64_t out_bytes_;
  decltype(&generic::silu_mul_row) kernel_;
};

}  // namespace galley
