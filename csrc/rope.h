// Rotary embedding of queries and keys, and writing K and V to the cache.
#pragma once
#include "variants.h"

namespace galley {

enum class RopeStyle : int {
  halves = 0,       // element i is rotated with element i + rot_dim / 2 (NeoX, Hugging Face checkpoints)
  interleaved = 1,  // element 2i is rotated with element 2i + 1
};

struct RopeShape {
  int64_t heads, kv_heads, head_dim, rot_dim;
  RopeStyle style;
  bool q_is_f32, kv_is_f32;  // otherwise bf16
  const float* q_weight;     // [head_dim] RMS norm of each head before the rotation, or null
  const float* k_weight;
  float eps;
};

// Consecutive tokens of one sequence that share a page.
struct RopeRun {
  const float* qkv;    // [count][(heads + 2 kv_heads) * head_dim]
  const float* table;  // [count][rot_dim]: cos, then sin
  uint8_t* q_out;      // [count][heads * head_dim]
  uint8_t* page;       // of the cache (attention_layout.h)
  int slot, count;     // tokens slot .. slot + count - 1 of the page
};

GALLEY_VARIANTS(
    // `next`, or null: the run after this one, whose first tokens are prefetched.
    // `scratch`: 2 * head_dim floats.
    void rope_kv_run(const RopeShape& shape, const RopeRun& run, const RopeRun* next,
                     float* scratch);)

}  // namespace galley
