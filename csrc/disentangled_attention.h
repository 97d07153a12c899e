// Disentangled attention (DeBERTa) of some queries of one head: scores have, besides the product of
// query and key, those of each of the two with a vector of their distance.
//
//   score(i, j) = scale * (q_i . k_j + q_i . keys[r] + k_j . queries[r]),  r = row of distance i - j
#pragma once
#include "variants.h"

namespace galley {

// Rows of f32 numbers.
struct HeadRows {
  const float* data;
  int64_t stride;
  __attribute__((always_inline)) const float* row(int64_t i) const { return data + i * stride; }
};

struct DisentangledJob {
  HeadRows q, k, v;        // of one head of a sequence
  HeadRows keys, queries;  // of the head, by row of distance; data null = scores have no such term
  const int32_t* rows;     // [2 reach + 1] the row of each distance from -reach to reach
  int64_t reach, length, head_dim;
  float scale;
};

GALLEY_VARIANTS(
    // out[head_dim] of query i. `scores` [length rounded up to 16] is scratch.
    void disentangled_row(const DisentangledJob& job, int64_t i, float* scores, float* out);)

}  // namespace galley
