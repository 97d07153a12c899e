// Layout of K and V in the cache, shared by the ops that write it (write_kv, rope_kv) and read it (attention).
//
//   layer base ─ block 0 ─ block 1 ─ ...      kv_block_stride bytes apart
//                   └ page of 16 tokens, page of 16 tokens, ...     (block_size / 16 pages)
//                        └ head 0 {K | V}, head 1 {K | V}, ...
//   bf16:  K [head_dim / 2][16 tokens][2]     V [8 token pairs][head_dim][2]
//   f32:   K [head_dim][16 tokens]            V [16 tokens][head_dim]
//
// One register thus holds one element of all 16 tokens' K, so that scores need no sum over lanes;
// bf16 is stored in the pairs that the dot-product instruction takes.
#pragma once
#include <cstdint>

#include "program.h"

namespace galley {

constexpr int64_t kPage = 16;  // tokens

struct KvLayout {
  uint8_t* base;         // of the layer
  int64_t block_stride;  // bytes
  int64_t heads, head_dim;
  bool is_f32;

  explicit KvLayout(const Args& a)
      : base(a.ptr<uint8_t>("kv")), block_stride(a.size("kv_block_stride")),
        heads(a.size("kv_heads")), head_dim(a.size("head_dim")),
        is_f32(a.kind("kv_kind") == Kind::f32) {
    if (a.kind("kv_kind") != Kind::f32 && a.kind("kv_kind") != Kind::bf16) {
      throw std::invalid_argument("kv_kind must be 0 (f32) or 1 (bf16)");
    }
    if (head_dim % 2 != 0) {
      throw std::invalid_argument("head_dim must be even, is " + std::to_string(head_dim));
    }
  }
  // Bytes of K (or V) of one head in one page; of one head's K and V; of all heads.
  int64_t half_bytes() const { return kPage * head_dim * (is_f32 ? 4 : 2); }
  int64_t head_bytes() const { return 2 * half_bytes(); }
  int64_t page_bytes() const { return heads * head_bytes(); }
  // The page that holds a slot's token at `position`.
  uint8_t* page(const Step& s, int32_t slot, int64_t position) const {
    const int64_t block = s.block_table[slot * s.table_stride + position / s.block_size];
    return base + block * block_stride + position % s.block_size / kPage * page_bytes();
  }
};

}  // namespace galley
