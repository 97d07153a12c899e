// Kernel of elementwise.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "elementwise.h"
#include "functions_lanes.h"
#include "quantize_row.h"

namespace galley {
namespace GALLEY_VARIANT {

template <class F> GALLEY_INLINE void apply(F f, const float* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(x + i)));
  if (i < n) {
    const int part = static_cast<int>(n - i);
    store_part(out + i, f(load_part(x + i, part)), part);
  }
}

GALLEY_INLINE void apply(const Elementwise& f, const float* x, int64_t n, float* out) {
  switch (f.function) {
    case Function::gelu: return apply([](const Float& v) { return gelu(v); }, x, n, out);
    case Function::gelu_tanh: return apply([](const Float& v) { return gelu_tanh(v); }, x, n, out);
    case Function::relu: return apply([](const Float& v) { return relu(v); }, x, n, out);
    case Function::relu2: return apply([](const Float& v) { return relu2(v); }, x, n, out);
    case Function::silu: return apply([](const Float& v) { return silu(v); }, x, n, out);
    case Function::xielu:
      return apply(
          [&f](const Float& v) { return xielu(v, f.positive, f.negative, f.beta, f.limit); }, x, n,
          out);
    case Function::sigmoid:
      return apply([](const Float& v) { return all(1.0f) / (all(1.0f) + exp(zero() - v)); }, x, n,
                   out);
    case Function::tanh:
      return apply(
          [](const Float& v) {
            return all(2.0f) / (all(1.0f) + exp(all(-2.0f) * v)) - all(1.0f);
          },
          x, n, out);
    case Function::clip:
      return apply(
          [&f](const Float& v) { return min(all(f.limit), max(all(-f.limit), v)); }, x, n, out);
    case Function::count: return;
  }
}

void elementwise_row(const Elementwise& f, const float* x, int64_t n, float* scratch, Kind kind,
                     void* out) {
  float* result = kind == Kind::f32 ? static_cast<float*>(out) : scratch;
  apply(f, x, n, result);
  if (kind != Kind::f32) store_row(result, n, kind, out);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
