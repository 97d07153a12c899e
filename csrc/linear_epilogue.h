// Epilogue of y[rows][32] of a panel: bias, gate·up or a function, the output's number format;
// included by kernels of linear.
#pragma once
#include "adapters.h"
#include "elementwise.h"
#include "functions_lanes.h"
#include "linear_lanes.h"
#include "quantize_row.h"

namespace galley {
namespace GALLEY_VARIANT {

#if defined(GALLEY_AMX)
using avx512::adapter_add;
using avx512::elementwise_row;
#endif

GALLEY_INLINE int lanes_left(int64_t left) {
  return left >= kLanes ? kLanes : left > 0 ? static_cast<int>(left) : 0;
}

inline void add_bias(const float* bias, int64_t left, float* y, int rows) {
  for (int h = 0; h < kHalves; h++) {
    const Float b = load_part(bias + h * kLanes, lanes_left(left - h * kLanes));
    for (int r = 0; r < rows; r++) {
      float* at = y + r * kPanel + h * kLanes;
      store(at, load(at) + b);
    }
  }
}

// The first 16 columns of a panel are gate, the others up; out rows are `stride` floats apart.
inline void activate_mul(Epilogue function, const float* y, int rows, float* out, int64_t stride) {
  const bool is_silu = function == Epilogue::silu_mul;
  for (int r = 0; r < rows; r++, y += kPanel, out += stride) {
    const Float gate = load(y);
    store(out, (is_silu ? silu(gate) : gelu_tanh(gate)) * load(y + kLanes));
  }
}

template <bool kAccumulate>
void store_f32(const float* y, int rows, int64_t width, float* out, int64_t stride) {
  for (int r = 0; r < rows; r++, y += kPanel, out += stride) {
    for (int64_t c = 0; c < width; c += kLanes) {
      const int part = lanes_left(width - c);
      Float value = load(y + c);
      if (part == kLanes) {
        if (kAccumulate) value = load(out + c) + value;
        store(out + c, value);
      } else {
        if (kAccumulate) value = load_part(out + c, part) + value;
        store_part(out + c, value, part);
      }
    }
  }
}

inline void store_bf16_rows(const float* y, int rows, int64_t width, uint8_t* out, int64_t bytes) {
  for (int r = 0; r < rows; r++, y += kPanel, out += bytes) {
    for (int64_t c = 0; c < width; c += kLanes) {
      store_bf16_part(reinterpret_cast<uint16_t*>(out) + c, load(y + c), lanes_left(width - c));
    }
  }
}

// Columns [column, column + width) of rows of q8 or q16, which are all of one group.
inline void store_group(const LinearJob& job, const float* y, int rows, int64_t row, int64_t column,
                 int64_t width) {
  for (int r = 0; r < rows; r++, y += kPanel) {
    uint8_t* out = job.out + (row + r) * job.out_bytes;
    store_groups(grouped_row(out, job.out_kind, job.out_columns), column, width, y);
  }
}

// Gate and up leave 16 columns of a panel; two panels make a group of q8 or q16, whose first half waits
// in `pair` [rows][32].
inline void store_results(const LinearJob& job, int64_t panel, int64_t row, int rows, float* y,
                          float* pair) {
  if (job.function) elementwise_row(*job.function, y, rows * kPanel, nullptr, Kind::f32, y);
  int64_t full = kPanel, column = panel * kPanel;
  if (is_gated(job.epilogue)) {
    full = kLanes, column = panel * kLanes;
    if (in_groups(job.out_kind)) {
      const bool second = panel % 2 == 1;
      activate_mul(job.epilogue, y, rows, pair + (second ? kLanes : 0), kPanel);
      if (!second && column + kLanes < job.out_columns) return;
      y = pair, full = kGroup, column -= second ? kLanes : 0;
    } else {
      activate_mul(job.epilogue, y, rows, y, kPanel);
    }
  }
  const int64_t left = job.out_columns - column, width = left < full ? left : full;
  if (in_groups(job.out_kind)) return store_group(job, y, rows, row, column, width);
  uint8_t* out = job.out + row * job.out_bytes;
  if (job.out_kind == Kind::bf16) {
    return store_bf16_rows(y, rows, width, out + 2 * column, job.out_bytes);
  }
  auto store_rows = job.accumulate ? store_f32<true> : store_f32<false>;
  store_rows(y, rows, width, reinterpret_cast<float*>(out) + column, job.out_bytes / 4);
}

// f(y + bias) of rows of a whole panel as f32 or bf16. `bias`: of the panel, or null.
template <class F>
GALLEY_INLINE void store_panel(const LinearJob& job, const float* bias, const float* y, int rows,
                               uint8_t* out, const F& f) {
  const Float low = bias ? load(bias) : zero(), high = bias ? load(bias + kLanes) : zero();
  for (int r = 0; r < rows; r++, y += kPanel, out += job.out_bytes) {
    Float a = load(y), b = load(y + kLanes);
    if (bias) a = a + low, b = b + high;
    a = f(a), b = f(b);
    if (job.out_kind == Kind::bf16) {
      store_bf16(reinterpret_cast<uint16_t*>(out), a, b);
      continue;
    }
    float* to = reinterpret_cast<float*>(out);
    if (job.accumulate) a = load(to) + a, b = load(to + kLanes) + b;
    store(to, a), store(to + kLanes, b);
  }
}

inline void finish(const LinearJob& job, int64_t panel, int64_t row, int rows, float* y, float* pair) {
  const int64_t column = panel * kPanel;
  const float* bias = job.bias ? job.bias + column : nullptr;
  if (job.addend || is_gated(job.epilogue) || in_groups(job.out_kind) || column + kPanel > job.weight.n) {
    if (bias) add_bias(bias, job.weight.n - column, y, rows);
    if (job.addend) adapter_add(*job.addend, panel, row, rows, y, false);
    return store_results(job, panel, row, rows, y, pair);
  }
  uint8_t* out = job.out + row * job.out_bytes + column * (job.out_kind == Kind::bf16 ? 2 : 4);
  const auto store = [&](const auto& f) { store_panel(job, bias, y, rows, out, f); };
  if (!job.function) return store([](const Float& v) { return v; });
  switch (job.function->function) {
    case Function::gelu: return store([](const Float& v) { return gelu(v); });
    case Function::gelu_tanh: return store([](const Float& v) { return gelu_tanh(v); });
    case Function::relu: return store([](const Float& v) { return relu(v); });
    case Function::relu2: return store([](const Float& v) { return relu2(v); });
    case Function::silu: return store([](const Float& v) { return silu(v); });
    default: return;
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
