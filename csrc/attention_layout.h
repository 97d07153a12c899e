// Layout of K and V in the cache, shared by the ops that write it (write_kv, rope_kv) and the op
// that reads it (attention).
//
//   layer base ─ block 0 ─ block 1 ─ ...      kv_block_stride bytes apart
//                   └ page of 16 tokens, page of 16 tokens, ...     (block_size / 16 pages)
//                        └ head 0 {K | V}, head 1 {K | V}, ...     (a latent cache: one head, K)
//   bf16:  K [head_dim / 2][16 tokens][2]     V [8 token pairs][head_dim][2]
//   f32:   K [head_dim][16 tokens]            V [16 tokens][head_dim]
//   codes of eight bits (kv_format.h) as bf16; behind K, and behind V, their scales if there are
//   some: f32 [16 tokens]
//
// One register thus holds one element of all 16 tokens' K, so that scores need no sum over lanes;
// bf16 is stored in the pairs that the dot-product instruction takes.
#pragma once
#include <cstdint>

#include "kv_format.h"
#include "program.h"

namespace galley {

constexpr int64_t kPage = 16;  // tokens

// The blocks of each sequence in one KV group, as plans of KV ops see them.
struct BlockTable {
  ColumnOf<int32_t> ids;
  int64_t block_size;

  bool operator==(const BlockTable& o) const {
    return ids == o.ids && block_size == o.block_size;
  }
  // Throws std::invalid_argument where a row of the step is longer than the table.
  void check(const Step& step) const {
    const int64_t limit = ids.stride() * block_size;
    for (int32_t r = 0; r < step.rows; r++) {
      const int64_t length = step.computed[r] + step.query_start[r + 1] - step.query_start[r];
      if (length > limit) {
        throw std::invalid_argument("length of row " + std::to_string(r) + " is " +
                                    std::to_string(length) + ", the limit is " +
                                    std::to_string(limit));
      }
    }
  }
};

// From the arguments of an op. The cache's format: kv_kind (KvKind), token_scales? (0, 1), and the
// floats k_scale?, v_scale? of the layer.
struct KvLayout {
  uint8_t* base;                  // of the layer
  int64_t block_stride;           // bytes
  ColumnOf<int32_t> block_table;  // [slots][blocks of a sequence] ids, of the layer's KV group
  int64_t block_size;             // tokens
  int64_t heads, head_dim;
  KvFormat format;
  bool latent;  // V is a part of K and not stored again

  explicit KvLayout(const Args& a, bool latent = false)
      : base(a.ptr<uint8_t>("kv")), block_stride(a.size("kv_block_stride")),
        block_table(a.column<int32_t>("block_table")), block_size(a.size("block_size")),
        heads(a.size("kv_heads")), head_dim(a.size("head_dim")), latent(latent) {
    format.kind = a.choice("kv_kind", kKvKinds, KvKind::f32);
    format.token_scales = a.choice("token_scales", 2, 0) == 1;
    format.k_scale = static_cast<float>(a.f("k_scale", 1.0));
    format.v_scale = static_cast<float>(a.f("v_scale", 1.0));
    if (!(format.k_scale > 0.0f) || !(format.v_scale > 0.0f)) {
      throw std::invalid_argument("k_scale and v_scale must be positive");
    }
    if (!format.is_codes() && (format.token_scales || format.k_scale != 1.0f || format.v_scale != 1.0f)) {
      throw std::invalid_argument("scales are of eight-bit numbers alone");
    }
    if (latent && (format.token_scales || format.k_scale != format.v_scale)) {
      throw std::invalid_argument("a latent cache has one scale, of the layer");
    }
    if (block_size != 16 && block_size != 32 && block_size != 64 && block_size != 128) {
      throw std::invalid_argument("block_size must be 16, 32, 64 or 128, is " +
                                  std::to_string(block_size));
    }
    if (head_dim % 2 != 0) {
      throw std::invalid_argument("head_dim must be even, is " + std::to_string(head_dim));
    }
  }
  BlockTable table() const { return {block_table, block_size}; }
  // Bytes of K (or V) of one head in one page; of one head's K and V; of all heads.
  int64_t half_bytes() const {
    return kPage * head_dim * format.item_bytes() + format.scale_bytes();
  }
  int64_t head_bytes() const { return latent ? half_bytes() : 2 * half_bytes(); }
  int64_t page_bytes() const { return heads * head_bytes(); }
  // The page that holds a slot's token at `position`.
  uint8_t* page(int32_t slot, int64_t position) const {
    const int64_t block = block_table.row(slot)[position / block_size];
    return base + block * block_stride + position % block_size / kPage * page_bytes();
  }
};

}  // namespace galley
