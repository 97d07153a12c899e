// Functions of one number, for a row of them.
#pragma once
#include "program.h"
#include "variants.h"

namespace galley {

// Those before xielu have no parameters.
enum class Function : int { gelu, gelu_tanh, relu, relu2, silu, xielu, sigmoid, tanh, clip, count };

// A function of one number, with its parameters where it has some.
struct Elementwise {
  Function function;
  float positive = 0, negative = 0, beta = 0, limit = 0;  // of xielu; limit of clip
};

GALLEY_VARIANTS(
    // out[n] = f(x[n]), stored as any kind through `scratch`[n]. As f32, out may be x.
    void elementwise_row(const Elementwise& f, const float* x, int64_t n, float* scratch, Kind kind,
                         void* out);)

}  // namespace galley
