// Activation functions on lanes, shared by the elementwise and the gated kernels.
#pragma once
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), written as x * sigmoid.
GALLEY_INLINE Float gelu_tanh(const Float& x) {
  const Float u = x * fma(x * x, all(0.0713548162726f), all(1.59576912160573f));
  return x / (all(1.0f) + exp(zero() - u));
}

// Error function to 4 units in the last place: a rational approximation on [-4, 4], where it
// reaches 1 in float32. The coefficients are those of Eigen and XLA.
GALLEY_INLINE Float erf(const Float& x) {
  const Float inside = min(all(4.0f), max(all(-4.0f), x));
  const Float square = inside * inside;
  Float p = fma(all(-2.72614225801306e-10f), square, all(2.77068142495902e-08f));
  p = fma(p, square, all(-2.10102402082508e-06f));
  p = fma(p, square, all(-5.69250639462346e-05f));
  p = fma(p, square, all(-7.34990630326855e-04f));
  p = fma(p, square, all(-2.95459980854025e-03f));
  p = fma(p, square, all(-1.60960333262415e-02f));
  Float q = fma(all(-1.45660718464996e-05f), square, all(-2.13374055278905e-04f));
  q = fma(q, square, all(-1.68282697438203e-03f));
  q = fma(q, square, all(-7.37332916720468e-03f));
  q = fma(q, square, all(-1.42647390514189e-02f));
  return inside * p / q;
}

// x / 2 * (1 + erf(x / sqrt(2))).
GALLEY_INLINE Float gelu(const Float& x) {
  return all(0.5f) * x * (all(1.0f) + erf(x * all(0.70710678118654752f)));
}

GALLEY_INLINE Float relu(const Float& x) { return max(zero(), x); }
GALLEY_INLINE Float relu2(const Float& x) { return relu(x) * relu(x); }

// positive x^2 + beta x for x > 0, negative (e^min(x, limit) - 1 - x) + beta x otherwise.
GALLEY_INLINE Float xielu(const Float& x, float positive, float negative, float beta, float limit) {
  const Float above = all(positive) * x * x;
  const Float below = all(negative) * (exp(min(all(limit), x)) - all(1.0f) - x);
  return fma(all(beta), x, select(x > zero(), above, below));
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
