// The scale of a recurrent state that decays: the state is scale * what the kernel keeps of it.
//
// A decay multiplies the scale, not the numbers of the state; what is added to the state is divided by
// the scale. Where the scale would get small, the numbers are multiplied with it ("folded") and it is 1
// again. All of this follows token by token from the decays of the sequence, so no bit depends on
// how a prompt is cut. The scale is kept in memory behind the numbers; a state of zeros has scale 1.
#pragma once
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

// 2^-50: what is divided by the scale stays far from the largest float.
constexpr float kSmallestScale = 8.8817842e-16f;

// One scale of all numbers.
struct StateScale {
  float* place;
  float value;

  explicit StateScale(float* place) : place(place), value(*place == 0.0f ? 1.0f : *place) {}

  // Returns the factor of the numbers that comes before what the token adds, nearly always 1.
  GALLEY_INLINE float decay(float by) {
    const float next = value * by;
    const bool folds = !(next >= kSmallestScale);
    value = folds ? 1.0f : next;
    return folds ? next : 1.0f;
  }
  void keep() const { *place = value; }
};

}  // namespace GALLEY_VARIANT
}  // namespace galley
