// A program: the list of ops that one engine step runs, in one native call.
//
// Python records the model's forward pass once (galley/kernels/cpu.py) and adds each op here by
// name with named arguments; pointers into the arena, the weights and the KV cache are fixed at
// that time. What changes from step to step is `Step`: how many tokens, sequences and logit rows
// there are, and the columns that describe them.
//
// An op is cut into tiles, which the pool (pool.h) hands to its threads. All tiles of an op end
// before the next op starts. A tile's result depends on nothing but its inputs (the invariance rule: which thread
// ran it, how many tiles there are and what else is in the batch never change a bit).
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "pool.h"

namespace galley {

// How the sampler treats one logits row. All pointers are columns indexed by *slot* (as the
// table's), except those marked [L], which are indexed by logit row and may be null.
struct Sampling {
  const float* temperature = nullptr;         // 0 = greedy
  const float* top_p = nullptr;               // 1 = off
  const float* min_p = nullptr;               // 0 = off
  const int32_t* top_k = nullptr;             // <= 0 = off
  const float* presence = nullptr;            // 0 = off; over output tokens
  const float* frequency = nullptr;           // 0 = off; over output tokens
  const float* repetition = nullptr;          // 1 = off; over prompt and output tokens
  const uint64_t* seed = nullptr;
  const int32_t* num_logprobs = nullptr;      // -1 = none wanted, else k >= 0
  const uint64_t* mask = nullptr;             // [L] address of a bit per token (1 = allowed), or 0
  const int32_t* bias_indptr = nullptr;       // [L + 1] logit bias, ragged
  const int32_t* bias_ids = nullptr;
  const float* bias_values = nullptr;
};

// What is different in every step. Filled by `Program::run` from the runner's table columns
// (`prepare_step`), so that Python passes O(1) pointers a step.
//
//   row r = slots[r]:  |<- computed[r] in the KV cache ->|<- this step: query_start[r] .. [r+1] ->|
struct Step {
  int32_t tokens = 0;                         // T: all rows' new tokens
  int32_t rows = 0;                           // S: sequences in this step
  int32_t logits = 0;                         // L: positions that yield logits
  const int32_t* slots = nullptr;             // [S]
  const int32_t* query_start = nullptr;       // [S + 1]
  const int32_t* computed = nullptr;          // [S] tokens already in the KV cache
  const int32_t* token_ids = nullptr;         // [T]
  const int32_t* positions = nullptr;         // [T] absolute
  const int32_t* token_row = nullptr;         // [T] index of the token's row
  const int32_t* logit_index = nullptr;       // [L] token index of each logit row
  const int32_t* logit_row = nullptr;         // [L] row of each logit row
  const uint8_t* logit_samples = nullptr;     // [L] 1 where a token is drawn, 0 = prompt logprobs only
  const int32_t* block_table = nullptr;       // [slots][table_stride] block ids (group 0)
  int64_t table_stride = 0;
  int32_t block_size = 16;                    // tokens per block: 16, 32, 64 or 128
  const int32_t* history = nullptr;           // [slots][history_stride] all tokens of a slot
  int64_t history_stride = 0;
  const int32_t* num_tokens = nullptr;        // [slots] known tokens
  const int32_t* num_prompt = nullptr;        // [slots]
  Sampling sampling;
};

enum class Rows : int { tokens = 0, logits = 1, rows = 2 };
static inline int32_t row_count(const Step& s, Rows k) {
  return k == Rows::tokens ? s.tokens : k == Rows::logits ? s.logits : s.rows;
}

// Kinds of activation values (linear.h): floats, and integers with a scale per group of 32 (q8: 8
// bits, q16: 16) or per row (q8_row).
enum class Kind : int { f32 = 0, bf16 = 1, q8 = 2, q8_row = 3, q16 = 4 };
constexpr int kKinds = 5;

// Named arguments of an op, as Python gave them. A missing name is an error here; a name that the
// op's constructor never asked for is an error in `Program::add`.
class Args {
 public:
  std::map<std::string, uint64_t> pointers;
  std::map<std::string, int64_t> ints;
  std::map<std::string, double> floats;

  template <class T> T* ptr(const std::string& name) const {
    T* p = ptr_or_null<T>(name);
    if (p == nullptr) throw std::invalid_argument("missing pointer argument: " + name);
    return p;
  }
  template <class T> T* ptr_or_null(const std::string& name) const {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(get(pointers, name, uint64_t{0})));
  }
  int64_t i(const std::string& name) const { return need(ints, name, "integer"); }
  int64_t i(const std::string& name, int64_t otherwise) const { return get(ints, name, otherwise); }
  double f(const std::string& name) const { return need(floats, name, "float"); }
  double f(const std::string& name, double otherwise) const { return get(floats, name, otherwise); }
  // A size: must be there and positive.
  int64_t size(const std::string& name) const {
    int64_t v = i(name);
    if (v <= 0) throw std::invalid_argument(name + " must be positive, is " + std::to_string(v));
    return v;
  }
  // An enumeration or flag: `otherwise` where absent, an error outside 0 .. count - 1.
  template <class E> E choice(const std::string& name, int count, E otherwise) const {
    int64_t v = i(name, static_cast<int64_t>(otherwise));
    if (v < 0 || v >= count) {
      throw std::invalid_argument(name + " must be 0 .. " + std::to_string(count - 1) + ", is " +
                                  std::to_string(v));
    }
    return static_cast<E>(v);
  }
  Kind kind(const std::string& name) const { return choice<Kind>(name, kKinds, Kind::f32); }
  Rows rows() const { return choice<Rows>("rows", 3, Rows::tokens); }
  // Names that were given and never read.
  std::vector<std::string> unread() const {
    std::vector<std::string> names;
    auto collect = [&](const auto& given) {
      for (const auto& item : given) {
        if (!read_.count(item.first)) names.push_back(item.first);
      }
    };
    collect(pointers), collect(ints), collect(floats);
    return names;
  }

 private:
  template <class V>
  V get(const std::map<std::string, V>& m, const std::string& name, V other) const {
    read_.insert(name);
    auto it = m.find(name);
    return it == m.end() ? other : it->second;
  }
  template <class V>
  V need(const std::map<std::string, V>& m, const std::string& name, const char* what) const {
    if (!m.count(name)) {
      throw std::invalid_argument(std::string("missing ") + what + " argument: " + name);
    }
    return get(m, name, V{});
  }
  mutable std::set<std::string> read_;
};

class Op {
 public:
  virtual ~Op() = default;
  // Number of tiles for this step's counts; 0 = nothing to do. May depend on `threads` only
  // where a tile's borders cannot change its result.
  virtual int64_t tiles(const Step& step, int threads) const = 0;
  // Tiles that a thread takes at least at a time; a large number = a thread's whole range.
  virtual int64_t grain(const Step&) const { return 1; }
  // Compute tiles [begin, end). Called concurrently with disjoint ranges; `thread` < threads
  // selects scratch memory.
  virtual void run(const Step& step, int64_t begin, int64_t end, int thread) = 0;
};

using OpMaker = std::function<std::unique_ptr<Op>(const Args&)>;
std::map<std::string, OpMaker>& op_registry();
struct RegisterOp {
  RegisterOp(const char* name, OpMaker maker) { op_registry()[name] = std::move(maker); }
};
#define GALLEY_OP(name, Class)                                   \
  static ::galley::RegisterOp register_##name(#name, [](const ::galley::Args& a) { \
    return std::unique_ptr<::galley::Op>(new Class(a)); })

// Instruction sets a kernel may be built for; the best that the machine has is used, or the one
// that GALLEY_CPU_ISA names. avx512 means F, BW, VL, DQ, BF16 and VNNI together. Asked when an op
// is made, never while it runs. Throws where GALLEY_CPU_ISA names a set the machine lacks.
enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2 };
Isa isa();
const char* isa_name(Isa isa);

// Columns of the runner's table, by slot; they stay where they are while a program lives.
struct Table {
  int32_t num_slots = 0;
  const int32_t* history = nullptr;           // [slots][history_stride]
  int64_t history_stride = 0;
  const int32_t* num_tokens = nullptr;        // [slots]
  const int32_t* num_prompt = nullptr;        // [slots]
  const int32_t* num_computed = nullptr;      // [slots]
  const int32_t* block_table = nullptr;       // [slots][table_stride]
  int64_t table_stride = 0;
  int32_t block_size = 16;
  Sampling sampling;                          // columns by slot; [L] members null
};

// What the buffers of a program were sized for.
struct Limits {
  int32_t tokens = 0, rows = 0, logits = 0;
};

// One op's place and cost in a program.
struct OpTiming {
  std::string name;
  int section;
  int64_t runs, nanoseconds;
};

// The recorded ops, in sections: 0 is the forward pass, 1 the sampler.
class Program {
 public:
  explicit Program(std::shared_ptr<Pool> pool) : pool_(std::move(pool)) {
    if (!pool_) throw std::invalid_argument("a program needs a pool");
  }
  void add(const std::string& name, const Args& args, int section);
  void bind(const Table& table, const Limits& limits);
  // [L] columns of the next runs; null = none.
  void set_logit_masks(const uint64_t* mask, const int32_t* bias_indptr, const int32_t* bias_ids,
                       const float* bias_values);
  // Prepare the step from the table and the plan's columns [n], then run the ops of sections
  // first .. last (inclusive). Throws before the first op where a column is out of bounds.
  void run(const int32_t* slots, const int32_t* num_new, const int32_t* num_logits,
           const int32_t* num_sampled, int32_t n, int first_section, int last_section);
  // A number that is counted up after each op (null = none): who watches it from outside can tell
  // a long step from one that hangs.
  void set_heartbeat(int64_t* heartbeat);
  void profile(bool on);
  std::vector<OpTiming> timings();
  const Step& step() const { return step_; }

 private:
  struct Entry {
    std::unique_ptr<Op> op;
    OpTiming timing;
  };
  void prepare(const int32_t* slots, const int32_t* num_new, const int32_t* num_logits,
               const int32_t* num_sampled, int32_t n);
  void run_op(Entry& entry);

  std::shared_ptr<Pool> pool_;
  std::vector<Entry> ops_;
  Table table_;
  Limits limits_;
  bool bound_ = false, profile_ = false;
  int64_t* heartbeat_ = nullptr;
  std::mutex running_;  // one run at a time: the arrays below are shared
  Step step_;
  std::vector<int32_t> slots_, query_start_, computed_, token_ids_, positions_, token_row_,
      logit_index_, logit_row_;
  std::vector<uint8_t> logit_samples_;
};

}  // namespace galley
