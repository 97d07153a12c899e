// Kernel of disentangled_attention.cpp; compiled once per instruction set (variants.h).
#pragma once
#include "disentangled_attention.h"
#include "math_lanes.h"

namespace galley {
namespace GALLEY_VARIANT {

constexpr int kKeys = 16;  // whose scores are computed together

// The terms of one score, lane by lane.
GALLEY_INLINE Float score_lanes(const DisentangledJob& job, const float* q, int64_t j, int64_t row) {
  const float* k = job.k.row(j);
  const float* key = job.keys.data ? job.keys.row(row) : nullptr;
  const float* query = job.queries.data ? job.queries.row(row) : nullptr;
  Float acc = zero();
  for (int64_t d = 0; d < job.head_dim; d += kLanes) {
    const int n = job.head_dim - d < kLanes ? static_cast<int>(job.head_dim - d) : kLanes;
    const Float qs = load_part(q + d, n), ks = load_part(k + d, n);
    acc = fma(qs, ks, acc);
    if (key) acc = fma(qs, load_part(key + d, n), acc);
    if (query) acc = fma(ks, load_part(query + d, n), acc);
  }
  return acc;
}

void disentangled_row(const DisentangledJob& job, int64_t i, float* scores, float* out) {
  const float* q = job.q.row(i);
  float most = -3.0e38f;
  for (int64_t first = 0; first < job.length; first += kKeys) {
    Float lanes[kKeys] = {};
    const int64_t count = job.length - first < kKeys ? job.length - first : kKeys;
    for (int64_t j = 0; j < count; j++) {
      int64_t distance = i - (first + j);
      if (distance > job.reach) distance = job.reach;
      if (distance < -job.reach) distance = -job.reach;
      lanes[j] = score_lanes(job, q, first + j, job.rows[distance + job.reach]);
    }
    sum_each<kKeys>(lanes, scores + first);
    for (int64_t j = 0; j < kKeys; j++) {
      float* score = scores + first + j;
      *score = j < count ? *score * job.scale : -3.0e38f;
      if (*score > most) most = *score;
    }
  }
  Float total = zero();
  for (int64_t j = 0; j < job.length; j += kLanes) {
    const Float p = exp(load(scores + j) - all(most));  // 0 beyond the last key
    store(scores + j, p);
    total = total + p;
  }
  const float one = 1.0f / sum(total);
  for (int64_t d = 0; d < job.head_dim; d += kLanes) {
    const int n = job.head_dim - d < kLanes ? static_cast<int>(job.head_dim - d) : kLanes;
    Float acc = zero();
    for (int64_t j = 0; j < job.length; j++) {
      acc = fma(all(scores[j]), load_part(job.v.row(j) + d, n), acc);
    }
    store_part(out + d, acc * all(one), n);
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
