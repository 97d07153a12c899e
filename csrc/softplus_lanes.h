// Softplus on lanes (math_lanes.h).
#pragma once
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

// log(1 + e^x), to a few units in the last place; for x far below 0, where it is e^x, to 2^-23 |x| of it.
GALLEY_INLINE Float softplus(const Float& x) {
  // max(x, 0) + log1p(u), u = e^-|x| in (0, 1]; log1p(u) = 2 atanh(z), z = u / (2 + u) <= 1/3.
  const Float u = exp2_nonpositive(min(x, zero() - x) * all(1.44269504f));
  const Float z = u / (all(2.0f) + u), s = z * z;
  Float p = fma(all(1.0f / 17), s, all(1.0f / 15));
  p = fma(p, s, all(1.0f / 13));
  p = fma(p, s, all(1.0f / 11));
  p = fma(p, s, all(1.0f / 9));
  p = fma(p, s, all(1.0f / 7));
  p = fma(p, s, all(1.0f / 5));
  p = fma(p, s, all(1.0f / 3));
  p = fma(p * s, z, z);
  return max(x, zero()) + (p + p);
}

// f of one number, by way of lanes.
GALLEY_INLINE float softplus_one(float x) {
  float lane[kLanes];
  store(lane, softplus(all(x)));
  return lane[0];
}
GALLEY_INLINE float exp_one(float x) {
  float lane[kLanes];
  store(lane, exp(all(x)));
  return lane[0];
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
