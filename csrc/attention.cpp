// Op `attention`: causal attention of this step's tokens over the cache, prefill and decode in one.
// Pointers: q ([tokens][heads * head_dim] of q_kind), kv (the layer's base), out ([tokens][heads *
// head_dim] of out_kind). Ints: heads, kv_heads, head_dim, q_kind, kv_kind (0 f32, 1 bf16),
// kv_block_stride (bytes), window (0 = all, else the last `window` tokens, the token itself among
// them), out_kind. Floats: scale.
//
// A row's bits depend on its own tokens alone: the cache is walked in tiles of 64 tokens at
// absolute multiples of 64, in chunks of 512 at absolute multiples of 512; each chunk starts from an
// empty state, and the states of the chunks are merged in order. How rows are put into items, and
// who computes which chunk, is free:
//
//   many new tokens    item = (block of queries, KV head): K and V stay in L1 for all its rows
//   few new tokens     item = (all new tokens, all KV heads): the cache is read in address order
//   ... of few or long sequences: cut by KV head, or by chunk; who ends last merges the chunks
#include "attention_kernel.h"

#include <algorithm>
#include <atomic>

#include "attention_layout.h"
#include "linear.h"

namespace galley {
namespace {

constexpr double kLog2E = 1.4426950408889634;

class Attention final : public Op {
 public:
  explicit Attention(const Args& a)
      : q_(a.ptr<uint8_t>("q")), out_(a.ptr<uint8_t>("out")), kv_(a), heads_(a.size("heads")),
        group_(heads_ / kv_.heads), window_(a.i("window", 0)), out_kind_(a.kind("out_kind")) {
    const Kind q_kind = a.kind("q_kind");
    if (q_kind != Kind::f32 && q_kind != Kind::bf16) {
      throw std::invalid_argument("q_kind must be 0 (f32) or 1 (bf16)");
    }
    if (heads_ % kv_.heads != 0) {
      throw std::invalid_argument("heads must be a multiple of kv_heads");
    }
    if (window_ < 0) throw std::invalid_argument("window must not be negative");
    const double scale = a.f("scale");
    if (!(scale > 0.0)) throw std::invalid_argument("scale must be positive");
    q_is_f32_ = q_kind == Kind::f32;
    shape_.head_dim = kv_.head_dim;
    shape_.is_f32 = kv_.is_f32;
    shape_.words = kv_.is_f32 ? kv_.head_dim : kv_.head_dim / 2;
    shape_.half_bytes = kv_.half_bytes();
    shape_.scale = static_cast<float>(scale * kLog2E);
    // Rows of one KV head whose states stay in L1 beside a tile's K or V.
    const int64_t rows = std::min<int64_t>(48, 6144 / shape_.padded_dim());
    block_queries_ = std::max<int64_t>(1, rows / group_);
    whole_rows_ = out_kind_ == Kind::q8_row ||
                  (out_kind_ == Kind::q8 && group_ * kv_.head_dim % kGroup != 0);
  }

  int64_t tiles(const Step& step, int threads) const override {
    plan(step, threads);
    const size_t per_thread = static_cast<size_t>(scratch_floats());
    scratch_.resize(threads);
    for (auto& s : scratch_) {
      if (s.size() < per_thread) s.resize(per_thread);
    }
    return static_cast<int64_t>(items_.size());
  }

  void run(const Step& step, int64_t begin, int64_t end, int thread) override {
    for (int64_t i = begin; i < end; i++) {
      const Item* next = i + 1 < end ? &items_[i + 1] : nullptr;
      run_item(step, items_[i], next, scratch_[thread].data());
    }
  }

 private:
  // Some queries of one sequence, and some KV heads. Cut by chunk where `parts` > 1.
  struct Group {
    int32_t row, token, queries;  // row of the step, first token of the step
    int32_t position;             // of the first query
    int32_t head, heads;          // KV heads
    int64_t first_chunk, chunks;
    int64_t partial = -1;         // where the chunks' states go in partial_, -1 = not cut
    int32_t counter = -1;         // in counters_
  };
  struct Item {
    int32_t group;
    int64_t first_chunk, chunks;
  };
  // A thread's memory for one item; rows are [head][query][query head of the group].
  struct Work {
    float* states;                             // of one chunk
    uint32_t* q;                               // packed queries
    int32_t* first;                            // bounds of a head's rows
    int32_t* last;
    const uint8_t* next[kTilePages] = {};      // first pages of the thread's next item
  };

  int64_t state_rows(const Group& g) const { return g.heads * g.queries * group_; }
  static int64_t known_tokens(const Step& step, int32_t row) {
    return step.computed[row] + step.query_start[row + 1] - step.query_start[row];
  }
  int64_t first_of(int64_t position) const {
    return window_ > 0 ? std::max<int64_t>(0, position + 1 - window_) : 0;
  }

  void plan(const Step& step, int threads) const;
  void add_group(const Step& step, int32_t row, int32_t query, int32_t queries, int32_t head,
                 int32_t heads) const;
  void cut_long_groups(int threads) const;
  int64_t scratch_floats() const;
  void run_item(const Step& step, const Item& item, const Item* next, float* scratch);
  void gather(const Group& g, const Work& work) const;
  void find_pages(const Step& step, const Group& g, int64_t start, int64_t head,
                  const uint8_t** pages) const;
  void attend_chunk(const Step& step, const Group& g, int64_t chunk, bool is_last,
                    const Work& work) const;
  void finish(const Group& g, const float* total, float* rows) const;

  const uint8_t* q_;
  uint8_t* out_;
  KvLayout kv_;
  int64_t heads_, group_, window_;
  Kind out_kind_;
  bool q_is_f32_ = false, whole_rows_ = false;
  AttentionShape shape_;
  int64_t block_queries_ = 1;
  decltype(&generic::clear_states) clear_states_ = GALLEY_PICK(clear_states);
  decltype(&generic::attend_tile) attend_tile_ = GALLEY_PICK(attend_tile);
  decltype(&generic::merge_states) merge_states_ = GALLEY_PICK(merge_states);
  decltype(&generic::finish_states) finish_states_ = GALLEY_PICK(finish_states);
  decltype(&generic::pack_queries) pack_queries_ = GALLEY_PICK(pack_queries);
  decltype(&generic::store_columns) store_columns_ = GALLEY_PICK(store_columns);
  mutable std::vector<Group> groups_;
  mutable std::vector<Item> items_;
  mutable std::vector<float> partial_;
  mutable std::vector<std::atomic<int32_t>> counters_;
  mutable std::vector<std::vector<float>> scratch_;  // [threads]
};

void Attention::add_group(const Step& step, int32_t row, int32_t query, int32_t queries,
                          int32_t head, int32_t heads) const {
  Group g;
  g.row = row;
  g.token = step.query_start[row] + query;
  g.queries = queries;
  g.position = step.computed[row] + query;
  g.head = head;
  g.heads = heads;
  g.first_chunk = first_of(g.position) / kChunk;
  g.chunks = (g.position + queries - 1) / kChunk - g.first_chunk + 1;
  groups_.push_back(g);
}

void Attention::plan(const Step& step, int threads) const {
  groups_.clear();
  const int32_t kv_heads = static_cast<int32_t>(kv_.heads);
  const int32_t block = static_cast<int32_t>(block_queries_);
  int64_t chunks = 0;
  for (int32_t r = 0; r < step.rows; r++) chunks += known_tokens(step, r) / kChunk + 1;
  // With fewer pieces than that, a thread may have nothing to do.
  const bool by_head = threads > 1 && chunks < 2 * threads;
  for (int32_t r = 0; r < step.rows; r++) {
    const int32_t queries = step.query_start[r + 1] - step.query_start[r];
    const int32_t heads = (queries > block || by_head) && !whole_rows_ ? 1 : kv_heads;
    for (int32_t q = 0; q < queries; q += block) {
      for (int32_t h = 0; h < kv_heads; h += heads) {
        add_group(step, r, q, std::min(block, queries - q), h, heads);
      }
    }
  }
  cut_long_groups(threads);
}

// A group that is a good part of all the work is cut into its chunks.
void Attention::cut_long_groups(int threads) const {
  int64_t work = 0;
  for (const Group& g : groups_) work += g.chunks * g.heads;
  items_.clear();
  int64_t partial = 0;
  int32_t counters = 0;
  for (size_t i = 0; i < groups_.size(); i++) {
    Group& g = groups_[i];
    const bool cut = g.chunks > 1 && g.chunks * g.heads * 4 * threads > work && threads > 1;
    if (cut) {
      g.partial = partial;
      g.counter = counters++;
      partial += g.chunks * state_rows(g) * shape_.state_size();
    }
    const int64_t step = cut ? 1 : g.chunks;
    for (int64_t c = 0; c < g.chunks; c += step) {
      items_.push_back({static_cast<int32_t>(i), g.first_chunk + c, step});
    }
  }
  if (static_cast<int64_t>(partial_.size()) < partial) partial_.resize(partial);
  if (static_cast<int32_t>(counters_.size()) < counters) {
    counters_ = std::vector<std::atomic<int32_t>>(counters);
  }
  for (const Group& g : groups_) {
    if (g.counter >= 0) counters_[g.counter].store(static_cast<int32_t>(g.chunks));
  }
}

// Of one thread: packed queries, bounds of the rows, a chunk's states, the total, output rows.
int64_t Attention::scratch_floats() const {
  const int64_t rows = block_queries_ * heads_;
  return rows * (shape_.words + 2 + 2 * shape_.state_size() + shape_.head_dim);
}

void Attention::run_item(const Step& step, const Item& item, const Item* next, float* scratch) {
  const Group& g = groups_[item.group];
  const int64_t rows = state_rows(g), size = shape_.state_size();
  Work work;
  float* total = scratch;
  work.states = total + rows * size;
  float* out_rows = work.states + rows * size;
  work.q = reinterpret_cast<uint32_t*>(out_rows + rows * shape_.head_dim);
  work.first = reinterpret_cast<int32_t*>(work.q + rows * shape_.words);
  work.last = work.first + g.queries * group_;
  gather(g, work);
  if (next) {
    const Group& n = groups_[next->group];
    const int64_t start = std::max(next->first_chunk * kChunk, first_of(n.position) / kTile * kTile);
    find_pages(step, n, start, n.head, work.next);
  }

  if (g.chunks == 1) {
    attend_chunk(step, g, item.first_chunk, true, work);
    finish(g, work.states, out_rows);  // merged into an empty state it would be the same
    return;
  }
  if (g.partial < 0) {
    clear_states_(shape_, total, rows);
    for (int64_t c = 0; c < item.chunks; c++) {
      attend_chunk(step, g, item.first_chunk + c, c + 1 == item.chunks, work);
      merge_states_(shape_, total, work.states, rows);
    }
  } else {
    float* states = partial_.data() + g.partial;
    work.states = states + (item.first_chunk - g.first_chunk) * rows * size;
    attend_chunk(step, g, item.first_chunk, true, work);
    if (counters_[g.counter].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    clear_states_(shape_, total, rows);
    for (int64_t c = 0; c < g.chunks; c++) {
      merge_states_(shape_, total, states + c * rows * size, rows);
    }
  }
  finish(g, total, out_rows);
}

// The queries by KV head, and which tokens each of a head's rows attends to.
void Attention::gather(const Group& g, const Work& work) const {
  const int64_t per_head = g.queries * group_;
  const int64_t head_bytes = shape_.head_dim * (q_is_f32_ ? 4 : 2);
  for (int64_t h = 0; h < g.heads; h++) {
    for (int64_t q = 0; q < g.queries; q++) {
      const int64_t head = (g.token + q) * heads_ + (g.head + h) * group_;
      pack_queries_(shape_, q_ + head * head_bytes, q_is_f32_, group_,
                    work.q + (h * per_head + q * group_) * shape_.words);
    }
  }
  for (int64_t r = 0; r < per_head; r++) {
    const int64_t position = g.position + r / group_;
    work.first[r] = static_cast<int32_t>(first_of(position));
    work.last[r] = static_cast<int32_t>(position + 1);
  }
}

// K of one head in the pages of the tile at `start`; past the sequence's end the first page again.
void Attention::find_pages(const Step& step, const Group& g, int64_t start, int64_t head,
                           const uint8_t** pages) const {
  const int64_t known = known_tokens(step, g.row);
  for (int i = 0; i < kTilePages; i++) {
    const int64_t position = start + i * kPage;
    pages[i] = i > 0 && position >= known
                   ? pages[0]
                   : kv_.page(step, step.slots[g.row], position) + head * kv_.head_bytes();
  }
}

void Attention::attend_chunk(const Step& step, const Group& g, int64_t chunk, bool is_last,
                             const Work& work) const {
  const int64_t per_head = g.queries * group_, size = shape_.state_size();
  const int64_t end_of_rows = work.last[per_head - 1];
  clear_states_(shape_, work.states, state_rows(g));
  const int64_t from = std::max<int64_t>(chunk * kChunk, work.first[0] / kTile * kTile);
  const int64_t to = std::min<int64_t>((chunk + 1) * kChunk, end_of_rows);
  const uint8_t* following[kTilePages];
  find_pages(step, g, from, g.head, following);
  int64_t begin = 0, end = 0;  // rows that the tile is for: both bounds only grow
  for (int64_t start = from; start < to; start += kTile) {
    while (end < per_head && work.first[end] < start + kTile) end++;
    while (begin < end && work.last[begin] <= start) begin++;
    AttentionTile tile;
    tile.start = start;
    tile.rows = end - begin;
    tile.first = work.first + begin;
    tile.last = work.last + begin;
    std::copy_n(following, kTilePages, tile.pages);
    if (start + kTile < to || (!is_last && start + kTile < end_of_rows)) {
      find_pages(step, g, start + kTile, g.head, following);
    } else {
      std::copy_n(work.next, kTilePages, following);
    }
    for (int64_t h = 0; h < g.heads; h++) {
      for (int i = 0; i < kTilePages; i++) {
        if (h > 0) tile.pages[i] += kv_.head_bytes();
        tile.ahead[i] = h + 1 < g.heads ? tile.pages[i] + kv_.head_bytes() : following[i];
      }
      tile.q = work.q + (h * per_head + begin) * shape_.words;
      tile.state = work.states + (h * per_head + begin) * size;
      attend_tile_(shape_, tile);
    }
  }
}

void Attention::finish(const Group& g, const float* total, float* rows) const {
  const int64_t per_head = g.queries * group_, dim = shape_.head_dim, size = shape_.state_size();
  const int64_t columns = g.heads * group_ * dim, width = heads_ * dim;
  const int64_t row_bytes = activation_bytes(out_kind_, width);
  for (int64_t q = 0; q < g.queries; q++) {
    for (int64_t h = 0; h < g.heads; h++) {
      finish_states_(shape_, total + (h * per_head + q * group_) * size, group_,
                     rows + h * group_ * dim, dim);
    }
    store_columns_(rows, g.head * group_ * dim, columns, width, out_kind_,
                   out_ + (g.token + q) * row_bytes);
  }
}

GALLEY_OP(attention, Attention);

}  // namespace
}  // namespace galley
