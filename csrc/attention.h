// Attention of some query rows of one KV head over one tile of the cache (attention_layout.h).
//
// The rows of all query heads that share a KV head, and of several queries, go together: each line
// of K and V is read once for up to six rows. Which rows share a call never changes a row's bits.
//
//   state of a row:  m  running maximum (in units of log2) | l[16] partial sums | o[padded dim]
//   scores s = q.K * scale, or soft-capped;  m' = max(m, s);  p = 2^(s - m'), rounded to bf16 for bf16 V
//   l = l * 2^(m - m') + p;  o = o * 2^(m - m') + p V
#pragma once
#include "variants.h"

namespace galley {

constexpr int64_t kTile = 64;    // tokens, at absolute multiples of 64
// Tokens; each chunk starts from an empty state, states merge in order.
#ifdef GALLEY_BENCHMARK_VARIANTS
extern int64_t kChunk;  // benchmarks/csrc/split.cpp
#else
constexpr int64_t kChunk = 512;
#endif
constexpr int kTilePages = 4;
// Tokens of a sequence, and dimensions of a head, that `attend_whole` takes at most.
constexpr int64_t kWholeTokens = 512, kWholeDims = 256;
// Floats of a row's scores in `attend_latents`; rows of whole pages would share a few sets of the cache.
constexpr int64_t kLatentScores = kWholeTokens + 16;
constexpr int kBiasPadding = 16;

struct AttentionShape {
  int64_t head_dim;    // of V and of the result
  int64_t words;       // 32-bit words of a query row and of K: pairs of bf16, or f32
  int64_t half_bytes;  // from K to V of a head in a page
  int64_t value_row;   // bytes from row to row of V
  const uint16_t* magnitudes;  // of codes (kv_format.h); null = K and V are numbers
  float scale;         // of scores, times log2(e)
  float value_scale;   // of V
  float soft_cap;      // 0 = none; else scores are first soft_cap * tanh(q.K * cap_scale)
  float cap_scale;
  // Tables of biases by distance from -reach to reach, in units as of slopes, each between
  // kBiasPadding copies of its first number and of its last.
  const float* biases;
  int64_t reach;
  bool is_f32;         // K, V and q; otherwise bf16, K and V perhaps as codes

  __attribute__((always_inline)) int64_t padded_dim() const { return (head_dim + 15) / 16 * 16; }
  // Floats of a row's state: m in the first 16, then l, then o.
  __attribute__((always_inline)) int64_t state_size() const { return 32 + padded_dim(); }
};

struct AttentionTile {
  const uint8_t* pages[kTilePages];  // the head's K in each page; all can be read
  const uint8_t* values[kTilePages];  // likewise V
  const uint8_t* ahead[kTilePages];  // read next, to be prefetched; null = nothing
  // Scales of the tokens of each page, f32 [16]; null = none.
  const uint8_t* k_scales[kTilePages];
  const uint8_t* v_scales[kTilePages];
  int64_t start;                     // absolute position of the first token
  int64_t rows;
  bool is_codes;         // pages and values are codes, otherwise numbers
  const uint32_t* q;     // [rows][words]
  // [rows] A row attends to absolute tokens first .. last - 1, at least one of them in the tile.
  // Neither decreases from row to row, and `last` is within the sequence.
  const int32_t* first;
  const int32_t* last;
  // [rows] Subtracted from a row's scores for each token of distance from the row's position, before
  // `scale` and after a soft cap; null = nothing.
  const float* slopes;
  // [rows] Where a row's table of `shape.biases` begins, which is added to scores likewise; null =
  // nothing.
  const int32_t* biases;
  const int32_t* position;
  float* state;          // [rows][state_size]
};

// Some queries of some heads, each of which attends to all tokens of a sequence.
struct WholeAttention {
  const uint8_t* q;  // rows of bf16, the heads side by side
  int64_t q_bytes;   // from row to row
  int64_t rows;
  int64_t heads, group;  // query heads, of which `group` share K and V
  int64_t tokens;
  int64_t pages;               // that hold them
  const uint8_t** keys;        // K of the first head in each page; changed
  int64_t head_bytes;          // from K to K of the next KV head
  uint8_t* out;                // rows of f32 or bf16, the heads side by side
  int64_t out_bytes;
  bool out_is_f32;
};

// Rows of all heads of some queries over a chunk of a latent cache.
struct LatentAttention {
  const uint8_t* const* pages;  // K of the chunk's pages, up to a multiple of four; all can be read
  int64_t start;   // absolute position of the first token
  int64_t tokens;  // that the last row attends to
  int64_t rows;
  const uint32_t* q;    // [rows][words]; rows up to a multiple of 16 can be read
  const int32_t* last;  // [rows] as of an AttentionTile
  float* scores;        // [rows up to a multiple of 16][kLatentScores], for intermediate results
  float* state;         // [rows][state_size], written
};

GALLEY_VARIANTS(
    void clear_states(const AttentionShape& shape, float* states, int64_t rows);
    void attend_tile(const AttentionShape& shape, const AttentionTile& tile);
    // `lines` runs of 32 codes as bf16, into 64 bytes each. `ahead`, or null: what is read next.
    void convert_codes(const uint16_t* magnitudes, const uint8_t* codes, int64_t lines,
                       uint8_t* out, const uint8_t* ahead);
    // V of a page, whose elements are the first head_dim of those of its K.
    void values_of_keys(const AttentionShape& shape, const uint8_t* k, uint8_t* v);
    // into += from; an empty `from` changes nothing, an empty `into` becomes `from`.
    void merge_states(const AttentionShape& shape, float* into, const float* from, int64_t rows);
    // out[r * stride ..] = o / sum(l). With `sinks` [rows], or null, row r has one more score,
    // sinks[r], of a token without a value.
    void finish_states(const AttentionShape& shape, const float* states, int64_t rows,
                       const float* sinks, float* out, int64_t stride);
    // Columns [first, first + n) of an output row of k columns. Kinds with a scale per group or per
    // row need whole groups or the whole row.
    void store_columns(const float* x, int64_t first, int64_t n, int64_t k, Kind kind,
                       uint8_t* row);
    // Query vectors of `heads` heads in a row as words.
    void pack_queries(const AttentionShape& shape, const void* q, bool q_is_f32, int64_t heads,
                      uint32_t* out);)

GALLEY_TILE_VARIANT(
    void attend_tile(const AttentionShape& shape, const AttentionTile& tile);
    // Of bf16, without biases by distance, a soft cap or a window; words are a multiple of 16, head_dim of 32.
    void attend_latents(const AttentionShape& shape, const LatentAttention& job);
    // Of bf16, without biases by distance, a soft cap or sinks; head_dim is a multiple of 16.
    void attend_whole(const AttentionShape& shape, WholeAttention job);)

}  // namespace galley
