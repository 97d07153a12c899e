// Op `attention`: attention of this step's tokens over the cache, prefill and decode in one.
// Pointers: q ([tokens] rows of heads * head_dim of q_kind), kv (the layer's base), slopes? (f32
// [heads], ALiBi: scale * q.k - slope * distance, before or behind), sinks? (f32 [heads]: a further score of each
// head, of a token without a value), biases? (f32 [2 reach + 1][heads]: added to scores by the token's
// distance, from -reach, as all further ones, to reach), out ([tokens][heads * head_dim] of out_kind). Ints: heads,
// kv_heads, head_dim, q_kind, q_stride? (elements from row to row, default heads * head_dim), the
// cache's format (attention_layout.h), kv_block_stride (bytes), window? (0 = all, else the last `window` tokens including the token itself), causal?
// (default 1: a token sees itself and those before it; 0: all tokens of its sequence that are
// known, this step's included, or with a window as many behind it as before it), out_kind, block_size. Floats: scale, soft_cap? (scores are
// soft_cap * tanh(score / soft_cap)). Columns: block_table.
// With span? a token sees those of its part of the sequence alone, which begins at a multiple of span.
// With value_dim (and q_rope) the cache is latent: V is the first value_dim elements of K; a row of
// q has those elements of each head, a row of q_rope the others, and one of out heads * value_dim.
//
// A row's bits depend on its own tokens alone: the cache is walked in tiles of 64 tokens at
// absolute multiples of 64, in chunks of 512 at absolute multiples of 512; each chunk starts from
// an empty state, and the states of the chunks are merged in order. Where a token sees all of a short
// sequence, tiles of AMX walk it at once (attention_whole_amx.h), and so they walk a chunk of a latent
// cache (attention_latent_amx.h). The division into work items
// (attention_plan.h) is free.
#include "attention_kernel.h"

#include <algorithm>

#include "attention_layout.h"
#include "attention_plan.h"
#include "linear.h"
#include "scratch.h"

namespace galley {
namespace {

constexpr double kLog2E = 1.4426950408889634;

class Attention final : public Op {
 public:
  explicit Attention(const Args& a)
      : q_(a.ptr<uint8_t>("q")), out_(a.ptr<uint8_t>("out")),
        sinks_(a.ptr_or_null<float>("sinks")), value_dim_(a.i("value_dim", 0)),
        kv_(a, value_dim_ > 0), heads_(a.size("heads")),
        out_kind_(a.kind("out_kind")) {
    const Kind q_kind = a.kind("q_kind");
    if (q_kind != Kind::f32 && q_kind != Kind::bf16) {
      throw std::invalid_argument("q_kind must be 0 (f32) or 1 (bf16)");
    }
    if (heads_ % kv_.heads != 0) {
      throw std::invalid_argument("heads must be a multiple of kv_heads");
    }
    const double scale = a.f("scale") * kv_.format.k_scale;
    if (!(scale > 0.0)) throw std::invalid_argument("scale must be positive");
    q_is_f32_ = q_kind == Kind::f32;
    q_rope_ = a.ptr_or_null<uint8_t>("q_rope");
    if (kv_.latent) {
      if (value_dim_ % 2 != 0 || value_dim_ >= kv_.head_dim || kv_.heads != 1 || !q_rope_) {
        throw std::invalid_argument("value_dim must be even, less than head_dim, of one head, with q_rope");
      }
    }
    shape_.head_dim = kv_.latent ? value_dim_ : kv_.head_dim;
    shape_.is_f32 = kv_.format.is_f32();
    shape_.words = shape_.is_f32 ? kv_.head_dim : kv_.head_dim / 2;
    shape_.magnitudes = kv_magnitudes(kv_.format.kind);
    shape_.value_scale = kv_.format.v_scale;
    shape_.half_bytes = kv_.half_bytes();
    // Rows of values that are made lie a cache line further apart: those of whole pages would share a
    // few sets of the cache.
    shape_.value_row = shape_.head_dim * 4 + (kv_.latent ? 64 : 0);
    const double soft_cap = a.f("soft_cap", 0.0);
    if (!(soft_cap >= 0.0)) throw std::invalid_argument("soft_cap must not be negative");
    shape_.soft_cap = static_cast<float>(soft_cap);
    shape_.cap_scale = soft_cap > 0.0 ? static_cast<float>(scale / soft_cap) : 0.0f;
    shape_.scale = static_cast<float>(soft_cap > 0.0 ? kLog2E : scale * kLog2E);
    // Capped scores are in their own units, others still without `scale`.
    const double unit = soft_cap > 0.0 ? 1.0 : scale;
    if (const float* slopes = a.ptr_or_null<float>("slopes")) {
      for (int64_t h = 0; h < heads_; h++) slopes_.push_back(static_cast<float>(slopes[h] / unit));
    }
    shape_.reach = a.i("reach", 0);
    if (const float* biases = a.ptr_or_null<float>("biases")) read_biases(biases, unit);
    geometry_.table = kv_.table();
    geometry_.kv_heads = kv_.heads;
    geometry_.group = heads_ / kv_.heads;
    geometry_.state_size = shape_.state_size();
    geometry_.window = a.i("window", 0);
    geometry_.span = a.i("span", 0);
    geometry_.causal = a.choice("causal", 2, 1) == 1;
    if (geometry_.window < 0) throw std::invalid_argument("window must not be negative");
    if (geometry_.span < 0 || (geometry_.span > 0 && geometry_.window > 0)) {
      throw std::invalid_argument("span must not be negative, nor go with a window");
    }
    if (geometry_.span > 0 && !geometry_.causal) {
      throw std::invalid_argument("a span needs causal attention");
    }
    const int64_t width = heads_ * shape_.head_dim, q_stride = a.i("q_stride", width);
    if (q_stride < width) throw std::invalid_argument("q_stride is less than heads * head_dim");
    q_row_bytes_ = q_stride * (q_is_f32_ ? 4 : 2);
    // Rows of one KV head whose states stay in L1 beside a tile's K or V.
    const int64_t rows =
        kv_.latent ? kLatentRows : std::min<int64_t>(48, 6144 / shape_.padded_dim());
    geometry_.block_queries = std::max<int64_t>(1, rows / geometry_.group);
    geometry_.whole_rows =
        out_kind_ == Kind::q8_row ||
        (in_groups(out_kind_) && geometry_.group * shape_.head_dim % kGroup != 0);
#if GALLEY_HAS_X86
    const bool tiles = isa() == Isa::amx && geometry_.window == 0 && !by_distance() &&
                       shape_.soft_cap == 0.0f && kv_.format.kind == KvKind::bf16;
    if (tiles && !geometry_.causal && !sinks_ && !q_is_f32_ && shape_.head_dim % 16 == 0 &&
        shape_.head_dim <= kWholeDims) {
      attend_whole_ = amx::attend_whole;
      geometry_.whole_tokens = kWholeTokens;
    }
    if (tiles && kv_.latent && geometry_.causal && geometry_.span == 0 &&
        shape_.head_dim % 32 == 0 && shape_.words % 16 == 0) {
      attend_latents_ = amx::attend_latents;
    }
#endif
    plan_ = a.plan<AttentionPlan>(geometry_);
  }

  void plan(const Step& step, int threads) override { plan_->make_once(step, threads); }

  int64_t tiles(const Step&, int) const override {
    return static_cast<int64_t>(plan_->items.size());
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    for (int64_t i = begin; i < end; i++) {
      run_item(step, plan_->items[i], i + 1 < end ? &plan_->items[i + 1] : nullptr);
    }
  }

 private:
  // Rows that share the values made of a tile's latent keys.
  static constexpr int64_t kLatentRows = 128;
  static constexpr int64_t kLatentBlock = 16;  // rows up to a multiple of it are read
  // With as many rows of a tile, codes are converted in registers, with more once for all.
  static constexpr int64_t kFewRows = 6;

  // A thread's memory for one item; rows are [head][query][query head of the KV head].
  struct Work {
    uint8_t* keys;    // of a tile, made of its codes; V as well unless the cache is latent
    uint8_t* values;  // of a tile, made of its latent keys
    float* states;  // of one chunk
    float* total;
    float* out;     // [columns]
    uint32_t* q;    // packed queries
    int32_t* first;  // range of tokens that each of a head's rows attends to
    int32_t* last;
    float* slopes;  // [head] of each row, if there are slopes
    int32_t* position;  // of each of a head's rows, if there are slopes or biases
    int32_t* biases;    // [head] of each row the offset of its table, if there are biases
    float* scores;      // of a chunk of latents
    const uint8_t* next[kTilePages] = {};  // first pages of the thread's next item
  };

  // The table of each head, in units of scores, with its ends repeated.
  void read_biases(const float* biases, double unit) {
    if (shape_.reach < 0) throw std::invalid_argument("reach must not be negative");
    const int64_t most = 2 * shape_.reach;
    bias_row_ = most + 1 + 2 * kBiasPadding;
    if (heads_ * bias_row_ > INT32_MAX) throw std::invalid_argument("reach is too large");
    for (int64_t h = 0; h < heads_; h++) {
      for (int64_t i = -kBiasPadding; i <= most + kBiasPadding; i++) {
        const int64_t distance = std::clamp<int64_t>(i, 0, most);
        biases_.push_back(static_cast<float>(biases[distance * heads_ + h] / unit));
      }
    }
    shape_.biases = biases_.data();
  }
  bool by_distance() const { return !slopes_.empty() || !biases_.empty(); }

  Work work_for(const AttentionGroup& g) const;
  void run_item(const Step& step, const AttentionItem& item, const AttentionItem* next);
  void pack_latent(int64_t token, uint32_t* out) const;
  void gather(const Step& step, const AttentionGroup& g, const Work& work) const;
  void find_pages(const Step& step, const AttentionGroup& g, int64_t start,
                  const uint8_t** pages) const;
  bool is_whole(const Step& step, const AttentionGroup& g) const;
  void attend_group(const Step& step, const AttentionGroup& g) const;
  void attend_chunk(const Step& step, const AttentionGroup& g, int64_t chunk, bool is_last,
                    const Work& work) const;
  void attend_latents(const Step& step, const AttentionGroup& g, int64_t chunk,
                      const Work& work) const;
  void convert_tile(AttentionTile* tile, const Work& work) const;
  void make_values(AttentionTile* tile, const Work& work) const;
  void finish(const AttentionGroup& g, const float* states, float* out) const;

  const uint8_t* q_;
  uint8_t* out_;
  const uint8_t* q_rope_ = nullptr;
  const float* sinks_;
  int64_t value_dim_;  // of a latent cache
  KvLayout kv_;
  int64_t heads_;
  Kind out_kind_;
  std::vector<float> slopes_;  // of each query head, in units of scores; empty = none
  std::vector<float> biases_;  // of each query head bias_row_ numbers; empty = none
  int64_t bias_row_ = 0;
  bool q_is_f32_ = false;
  int64_t q_row_bytes_ = 0;
  AttentionShape shape_;
  AttentionGeometry geometry_;
  decltype(&generic::clear_states) clear_states_ = GALLEY_PICK(clear_states);
  decltype(&generic::convert_codes) convert_codes_ = GALLEY_PICK(convert_codes);
  decltype(&generic::values_of_keys) values_of_keys_ = GALLEY_PICK(values_of_keys);
  decltype(&generic::attend_tile) attend_tile_ = GALLEY_PICK_TILES(attend_tile);
  void (*attend_whole_)(const AttentionShape&, WholeAttention) = nullptr;
  void (*attend_latents_)(const AttentionShape&, const LatentAttention&) = nullptr;
  decltype(&generic::merge_states) merge_states_ = GALLEY_PICK(merge_states);
  decltype(&generic::finish_states) finish_states_ = GALLEY_PICK(finish_states);
  decltype(&generic::pack_queries) pack_queries_ = GALLEY_PICK(pack_queries);
  decltype(&generic::store_columns) store_columns_ = GALLEY_PICK(store_columns);
  AttentionPlan* plan_;  // shared by the layers of this geometry
};

Attention::Work Attention::work_for(const AttentionGroup& g) const {
  const int64_t rows = geometry_.rows(g), per_head = g.queries * geometry_.group;
  const int64_t states = rows * shape_.state_size();
  const int64_t columns = g.heads * geometry_.group * shape_.head_dim;
  Work w;
  const int64_t slopes = slopes_.empty() ? 0 : rows;
  const int64_t biases = biases_.empty() ? 0 : rows;
  // In floats.
  const int64_t value_rows = kTile / (shape_.is_f32 ? 1 : 2);
  const int64_t values = kv_.latent && !attend_latents_ ? value_rows * shape_.value_row / 4 : 0;
  const int64_t more_rows = attend_latents_ ? kLatentBlock : 0;
  const int64_t scores = attend_latents_ ? (rows + more_rows) * kLatentScores : 0;
  const int64_t keys = shape_.magnitudes ? kTile * shape_.words * (kv_.latent ? 1 : 2) : 0;
  w.scores = thread_scratch(scores + keys + values + 2 * states + columns +
                            (rows + more_rows) * shape_.words + 2 * per_head + slopes + biases +
                            (by_distance() ? per_head : 0));
  w.states = w.scores + scores;
  w.keys = reinterpret_cast<uint8_t*>(w.states);
  w.values = w.keys + 4 * keys;
  w.states += keys + values;
  w.total = w.states + states;
  w.out = w.total + states;
  w.q = reinterpret_cast<uint32_t*>(w.out + columns);
  w.first = reinterpret_cast<int32_t*>(w.q + (rows + more_rows) * shape_.words);
  w.last = w.first + per_head;
  w.slopes = reinterpret_cast<float*>(w.last + per_head);
  w.biases = reinterpret_cast<int32_t*>(w.slopes + slopes);
  w.position = w.biases + biases;
  return w;
}

void Attention::run_item(const Step& step, const AttentionItem& item, const AttentionItem* next) {
  const AttentionGroup& g = plan_->groups[item.group];
  if (is_whole(step, g)) return attend_group(step, g);
  const int64_t rows = geometry_.rows(g), states_size = rows * shape_.state_size();
  Work work = work_for(g);
  gather(step, g, work);
  if (next) {
    const AttentionGroup& n = plan_->groups[next->group];
    const int64_t first = geometry_.first_of(n.position) / kTile * kTile;
    find_pages(step, n, std::max(next->first_chunk * kChunk, first), work.next);
  }
  // The states of the first chunk take in those of the others.
  if (g.partial < 0) {
    attend_chunk(step, g, item.first_chunk, item.chunks == 1, work);
    std::swap(work.states, work.total);
    for (int64_t c = 1; c < item.chunks; c++) {
      attend_chunk(step, g, item.first_chunk + c, c + 1 == item.chunks, work);
      merge_states_(shape_, work.total, work.states, rows);
    }
    return finish(g, work.total, work.out);
  }
  float* partial = plan_->partial + g.partial;
  work.states = partial + (item.first_chunk - g.first_chunk) * states_size;
  attend_chunk(step, g, item.first_chunk, true, work);
  std::atomic<int32_t>& unfinished = plan_->unfinished[g.counter];
  if (unfinished.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  unfinished.store(static_cast<int32_t>(g.chunks), std::memory_order_relaxed);  // next layer
  for (int64_t c = 1; c < g.chunks; c++) {
    merge_states_(shape_, partial, partial + c * states_size, rows);
  }
  finish(g, partial, work.out);
}

// Whether the queries see all of a short sequence, of a kind that tiles compute at once.
bool Attention::is_whole(const Step& step, const AttentionGroup& g) const {
  return attend_whole_ && known_tokens(step, g.row) <= kWholeTokens;
}

void Attention::attend_group(const Step& step, const AttentionGroup& g) const {
  const int64_t dim = shape_.head_dim, first = g.head * geometry_.group;
  const int64_t count = g.heads * geometry_.group, width = heads_ * dim;
  const int64_t row_bytes = activation_bytes(out_kind_, width);
  uint8_t* out = out_ + g.token * row_bytes;
  const uint8_t* keys[kWholeTokens / kPage];
  WholeAttention job;
  job.q = q_ + g.token * q_row_bytes_ + first * dim * 2;
  job.q_bytes = q_row_bytes_;
  job.rows = g.queries;
  job.heads = count, job.group = geometry_.group;
  job.tokens = known_tokens(step, g.row);
  job.pages = (job.tokens + kPage - 1) / kPage;
  job.keys = keys;
  job.head_bytes = kv_.head_bytes();
  for (int64_t i = 0; i < job.pages; i++) {
    keys[i] = kv_.page(step.slots[g.row], i * kPage) + g.head * job.head_bytes;
  }
  // Rows of other kinds are made of those of f32.
  const bool direct = out_kind_ == Kind::f32 || out_kind_ == Kind::bf16;
  float* rows = direct ? nullptr : thread_scratch(g.queries * count * dim);
  job.out_is_f32 = out_kind_ != Kind::bf16;
  job.out_bytes = direct ? row_bytes : count * dim * 4;
  job.out = direct ? out + first * dim * (job.out_is_f32 ? 4 : 2) : reinterpret_cast<uint8_t*>(rows);
  attend_whole_(shape_, job);
  for (int64_t q = 0; !direct && q < g.queries; q++) {
    store_columns_(rows + q * count * dim, first * dim, count * dim, width, out_kind_,
                   out + q * row_bytes);
  }
}

// Packs the queries by KV head and sets the range of tokens that each of a head's rows attends to.
void Attention::gather(const Step& step, const AttentionGroup& g, const Work& work) const {
  const int64_t per_head = g.queries * geometry_.group;
  const int64_t head_bytes = shape_.head_dim * (q_is_f32_ ? 4 : 2);
  for (int64_t h = 0; h < g.heads; h++) {
    for (int64_t q = 0; q < g.queries; q++) {
      const uint8_t* heads =
          q_ + (g.token + q) * q_row_bytes_ + (g.head + h) * geometry_.group * head_bytes;
      const int64_t row = h * per_head + q * geometry_.group;
      if (kv_.latent) {
        pack_latent(g.token + q, work.q + row * shape_.words);
      } else {
        pack_queries_(shape_, heads, q_is_f32_, geometry_.group, work.q + row * shape_.words);
      }
      const int64_t head = (g.head + h) * geometry_.group;
      if (!slopes_.empty()) std::copy_n(slopes_.data() + head, geometry_.group, work.slopes + row);
      if (biases_.empty()) continue;
      for (int64_t i = 0; i < geometry_.group; i++) {
        work.biases[row + i] = static_cast<int32_t>((head + i) * bias_row_);
      }
    }
  }
  const int64_t known = known_tokens(step, g.row);
  for (int64_t r = 0; r < per_head; r++) {
    const int64_t position = g.position + r / geometry_.group;
    work.first[r] = static_cast<int32_t>(geometry_.first_of(position));
    work.last[r] = static_cast<int32_t>(geometry_.end_of(position, known));
    if (by_distance()) work.position[r] = static_cast<int32_t>(position);
  }
}

// The queries of a token, whose heads have two parts each.
void Attention::pack_latent(int64_t token, uint32_t* out) const {
  AttentionShape rope = shape_;
  rope.head_dim = kv_.head_dim - value_dim_;
  const int64_t item = q_is_f32_ ? 4 : 2, words_per_item = shape_.is_f32 ? 2 : 1;
  const uint8_t* from = q_ + token * q_row_bytes_;
  const uint8_t* from_rope = q_rope_ + token * heads_ * rope.head_dim * item;
  for (int64_t h = 0; h < heads_; h++, out += shape_.words) {
    pack_queries_(shape_, from + h * value_dim_ * item, q_is_f32_, 1, out);
    pack_queries_(rope, from_rope + h * rope.head_dim * item, q_is_f32_, 1,
                  out + value_dim_ * words_per_item / 2);
  }
}

// Addresses of K of the group's first head in the pages of the tile at `start`; past the sequence's
// end, the first page again.
void Attention::find_pages(const Step& step, const AttentionGroup& g, int64_t start,
                           const uint8_t** pages) const {
  const int64_t known = known_tokens(step, g.row);
  for (int i = 0; i < kTilePages; i++) {
    const int64_t position = start + i * kPage;
    pages[i] = i > 0 && position >= known
                   ? pages[0]
                   : kv_.page(step.slots[g.row], position) + g.head * kv_.head_bytes();
  }
}

void Attention::attend_latents(const Step& step, const AttentionGroup& g, int64_t chunk,
                               const Work& work) const {
  const int64_t rows = geometry_.rows(g);
  const uint8_t* pages[kWholeTokens / kPage];
  LatentAttention job;
  job.pages = pages;
  job.start = chunk * kChunk;
  job.tokens = std::min<int64_t>(kChunk, work.last[rows - 1] - job.start);
  const int64_t count = (job.tokens + kPage - 1) / kPage;
  for (int64_t i = 0; i < count; i++) pages[i] = kv_.page(step.slots[g.row], job.start + i * kPage);
  std::fill(pages + count, pages + (count + 3) / 4 * 4, pages[0]);
  int64_t first = 0;
  while (work.last[first] <= job.start) first++;
  clear_states_(shape_, work.states, first);
  job.rows = rows - first;
  job.q = work.q + first * shape_.words;
  job.last = work.last + first;
  job.scores = work.scores;
  job.state = work.states + first * shape_.state_size();
  attend_latents_(shape_, job);
}

void Attention::attend_chunk(const Step& step, const AttentionGroup& g, int64_t chunk,
                             bool is_last, const Work& work) const {
  if (attend_latents_) return attend_latents(step, g, chunk, work);
  const int64_t per_head = g.queries * geometry_.group, size = shape_.state_size();
  const int64_t end_of_rows = work.last[per_head - 1];
  clear_states_(shape_, work.states, geometry_.rows(g));
  const int64_t from = std::max<int64_t>(chunk * kChunk, work.first[0] / kTile * kTile);
  const int64_t to = std::min<int64_t>((chunk + 1) * kChunk, end_of_rows);
  const uint8_t* following[kTilePages];
  find_pages(step, g, from, following);
  int64_t begin = 0, end = 0;  // rows that attend to the tile; both bounds only grow
  for (int64_t start = from; start < to; start += kTile) {
    while (end < per_head && work.first[end] < start + kTile) end++;
    while (begin < end && work.last[begin] <= start) begin++;
    AttentionTile tile;
    tile.start = start;
    tile.rows = end - begin;
    tile.first = work.first + begin;
    tile.last = work.last + begin;
    const uint8_t* pages[kTilePages];  // of head h
    std::copy_n(following, kTilePages, pages);
    if (start + kTile < to || (!is_last && start + kTile < end_of_rows)) {
      find_pages(step, g, start + kTile, following);
    } else {
      std::copy_n(work.next, kTilePages, following);
    }
    for (int64_t h = 0; h < g.heads; h++) {
      for (int i = 0; i < kTilePages; i++) {
        if (h > 0) pages[i] += kv_.head_bytes();
        tile.pages[i] = pages[i];
        tile.ahead[i] = h + 1 < g.heads ? pages[i] + kv_.head_bytes() : following[i];
        tile.values[i] = pages[i] + shape_.half_bytes;
        tile.k_scales[i] = tile.v_scales[i] = nullptr;
        if (!kv_.format.token_scales) continue;
        tile.k_scales[i] = tile.values[i] - kv_.format.scale_bytes();
        tile.v_scales[i] = tile.k_scales[i] + shape_.half_bytes;
      }
      tile.is_codes = shape_.magnitudes && !kv_.latent && tile.rows <= kFewRows;
      if (shape_.magnitudes && !tile.is_codes) convert_tile(&tile, work);
      if (kv_.latent) make_values(&tile, work);
      tile.q = work.q + (h * per_head + begin) * shape_.words;
      tile.slopes = slopes_.empty() ? nullptr : work.slopes + h * per_head + begin;
      tile.biases = biases_.empty() ? nullptr : work.biases + h * per_head + begin;
      tile.position = by_distance() ? work.position + begin : nullptr;
      tile.state = work.states + (h * per_head + begin) * size;
      attend_tile_(shape_, tile);
    }
  }
}

// K and V of a tile's codes as bf16 numbers.
void Attention::convert_tile(AttentionTile* tile, const Work& work) const {
  const int64_t lines = kv_.head_dim / 2, bytes = lines * 64;
  const uint8_t *pages[kTilePages], *values[kTilePages];
  std::copy_n(tile->pages, kTilePages, pages);
  std::copy_n(tile->values, kTilePages, values);
  for (int i = 0; i < kTilePages; i++) {
    const uint8_t* ahead = tile->ahead[i];
    tile->ahead[i] = nullptr;
    if (i > 0 && pages[i] == pages[0]) {
      tile->pages[i] = tile->pages[0];
      tile->values[i] = tile->values[0];
      continue;
    }
    uint8_t* to = work.keys + i * bytes;
    convert_codes_(shape_.magnitudes, pages[i], lines, to, ahead);
    tile->pages[i] = to;
    if (kv_.latent) continue;
    to += kTilePages * bytes;
    convert_codes_(shape_.magnitudes, values[i], lines, to, ahead ? ahead + shape_.half_bytes : ahead);
    tile->values[i] = to;
  }
}

// The values of a tile of latent keys.
void Attention::make_values(AttentionTile* tile, const Work& work) const {
  const int64_t bytes = kPage / (shape_.is_f32 ? 1 : 2) * shape_.value_row;
  for (int i = 0; i < kTilePages; i++) {
    tile->values[i] = work.values + i * bytes;
    if (i > 0 && tile->pages[i] == tile->pages[0]) {
      tile->values[i] = tile->values[0];
    } else {
      values_of_keys_(shape_, tile->pages[i], work.values + i * bytes);
    }
  }
}

void Attention::finish(const AttentionGroup& g, const float* states, float* out) const {
  const int64_t group = geometry_.group, per_head = g.queries * group, dim = shape_.head_dim;
  const int64_t columns = g.heads * group * dim, width = heads_ * dim;
  const int64_t row_bytes = activation_bytes(out_kind_, width);
  for (int64_t q = 0; q < g.queries; q++) {
    for (int64_t h = 0; h < g.heads; h++) {
      const float* sinks = sinks_ ? sinks_ + (g.head + h) * group : nullptr;
      finish_states_(shape_, states + (h * per_head + q * group) * shape_.state_size(), group,
                     sinks, out + h * group * dim, dim);
    }
    store_columns_(out, g.head * group * dim, columns, width, out_kind_,
                   out_ + (g.token + q) * row_bytes);
  }
}

GALLEY_OP(attention, Attention);

}  // namespace
}  // namespace galley
