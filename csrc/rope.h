// Rotary embedding of queries and keys, and writing K and V to the cache.
#pragma once
#include "kv_format.h"
#include "variants.h"

namespace galley {

enum class RopeStyle : int {
  halves = 0,       // rotates element i with element i + rot_dim / 2 (NeoX, Hugging Face)
  interleaved = 1,  // rotates element 2i with element 2i + 1
};

struct Rotation {
  int64_t head_dim, rot_dim;
  RopeStyle style;
  const float* table;  // [positions][rot_dim]: cos, then sin
};

// K and V of a layer, and consecutive tokens of one sequence that share a page
// (attention_layout.h).
struct KvShape {
  int64_t heads, head_dim;
  KvFormat format;

  // Bytes of K (or V) of one head in one page.
  __attribute__((always_inline)) int64_t half_bytes() const {
    return 16 * head_dim * format.item_bytes() + format.scale_bytes();
  }
};
struct KvRun {
  uint8_t* page;
  int slot, count;  // tokens slot .. slot + count - 1 of the page
};

// Rows of f32 or bf16 numbers.
struct KvRows {
  const uint8_t* data;
  int64_t bytes;  // from row to row
  bool is_f32;
};

struct RopeKvShape {
  Rotation rotation;
  KvShape kv;
  int64_t heads;
  bool q_is_f32;          // otherwise bf16
  const float* q_weight;  // [head_dim] RMS norm of each head before the rotation, or null
  const float* k_weight;
  float eps;
};

struct RopeKvRun {
  KvRun kv;
  const float* qkv;          // [count][(heads + 2 kv_heads) * head_dim]
  const int32_t* positions;  // [count]
  uint8_t* q_out;            // [count][heads * head_dim]
};

GALLEY_VARIANTS(
    // out = `heads` vectors of a row, rotated by the angles of `position`, as f32 or bf16.
    // `scratch`: head_dim floats.
    void rope_row(const Rotation& rotation, const float* x, int64_t heads, int32_t position,
                  bool out_is_f32, void* out, float* scratch);
    // Writes k and v ([count][heads * head_dim]) to the cache. `scratch`: head_dim floats.
    void write_kv_run(const KvShape& shape, const KvRun& run, const KvRows& k, const KvRows& v,
                      float* scratch);
    // RMS norm, rope_row and write_kv_run in one pass, with the same bits. `next`, or null: the run
    // after this one, whose first tokens are prefetched. `scratch`: 2 * head_dim floats.
    void rope_kv_run(const RopeKvShape& shape, const RopeKvRun& run, const RopeKvRun* next,
                     float* scratch);)

}  // namespace galley
