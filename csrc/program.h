// A program: the list of ops that an engine step runs, in one native call.
//
// Python records the model's forward pass once (galley/kernels/cpu.py) and adds each op here by
// name with named arguments; pointers into the arena, the weights and the KV cache are fixed at
// that time. The size of a step (`Step`) and the contents of its columns (columns.h) differ from
// step to step.
//
// An op is divided into tiles, which the pool (pool.h) distributes over its threads. All tiles of
// an op end before the next op starts. A tile's result depends on its inputs alone (the invariance
// rule: the thread that runs it, the number of tiles and the other rows of the batch never change a
// bit).
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "columns.h"
#include "pool.h"

namespace galley {

// The rows, tokens and logit rows of one step, as Program::prepare makes them of the plan's
// columns. The arrays are columns too: an op may ask for them by the names given here.
//
//   row r = slots[r]:  |<- computed[r] in the KV cache ->|<- this step: query_start[r] .. [r+1] ->|
struct Step {
  int64_t number = 0;                      // of steps prepared so far
  int32_t tokens = 0;                      // T: new tokens of all rows
  int32_t rows = 0;                        // S: sequences in this step
  int32_t logits = 0;                      // L: positions that yield logits
  const int32_t* sizes = nullptr;          // of each dimension: tokens, sequences, logits ...
  const int32_t* slots = nullptr;          // [S]
  const int32_t* query_start = nullptr;    // [S + 1]
  const int32_t* computed = nullptr;       // [S] tokens already in the KV cache
  const int32_t* token_ids = nullptr;      // [T]
  const int32_t* positions = nullptr;      // [T] index of the token in its sequence
  const int32_t* token_row = nullptr;      // [T] row of the token
  const int32_t* logit_index = nullptr;    // [L] token of each logit row
  const int32_t* logit_row = nullptr;      // [L] row of each logit row
  const uint8_t* logit_sampled = nullptr;  // [L] 1 = sample a token, 0 = prompt logprobs only
};

inline int64_t row_count(const Step& step, const Dim& dim) {
  return step.sizes[dim.base] * dim.times;
}

// Kinds of activation values (linear.h): floats, and integers with a scale per group of 32 (q8: 8
// bits, q16: 16) or per row (q8_row).
enum class Kind : int { f32 = 0, bf16 = 1, q8 = 2, q8_row = 3, q16 = 4 };
constexpr int kKinds = 5;

// Named arguments of an op, from Python. A missing name is an error here; a name that the op's
// constructor never asks for is an error in `Program::add`.
class Args {
 public:
  explicit Args(Environment& environment) : environment_(&environment) {}

  std::map<std::string, uint64_t> pointers;
  std::map<std::string, int64_t> ints;
  std::map<std::string, double> floats;
  std::map<std::string, std::string> columns;  // names of columns other than the default
  std::map<std::string, std::pair<std::string, int64_t>> dims;  // base, times

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
  // The dimension of the op's rows; tokens where absent.
  Dim rows() const;
  // The column that the argument names, or the column of the argument's own name. Throws where no
  // such column is bound.
  template <class T> ColumnOf<T> column(const std::string& name) const {
    return environment_->columns.get<T>(get(columns, name, name));
  }
  // The same for a column that may be bound later, or never.
  template <class T> ColumnOf<T> optional_column(const std::string& name) const {
    return environment_->columns.get_optional<T>(get(columns, name, name));
  }
  // The plan that the program's ops of this geometry share.
  template <class P> P* plan(const typename P::Geometry& geometry) const {
    return environment_->plans.get<P>(geometry);
  }
  // Names of arguments that were never read.
  std::vector<std::string> unread() const {
    std::vector<std::string> names;
    auto collect = [&](const auto& arguments) {
      for (const auto& item : arguments) {
        if (!read_.count(item.first)) names.push_back(item.first);
      }
    };
    collect(pointers), collect(ints), collect(floats), collect(columns), collect(dims);
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
  Environment* environment_;
  mutable std::set<std::string> read_;
};

class Op {
 public:
  virtual ~Op() = default;
  // Called once a step, before any op of the step runs: divide the work, size thread-local state,
  // check bounds. Throws std::invalid_argument where the step cannot be run.
  virtual void plan(const Step&, int /*threads*/) {}
  // Number of tiles of the planned step; 0 = nothing to do. May depend on the number of threads
  // only where a tile's borders cannot change its result.
  virtual int64_t tiles(const Step& step, int threads) const = 0;
  // The fewest tiles that a thread takes at a time; a large number = a thread's whole range.
  virtual int64_t grain(const Step&) const { return 1; }
  // Compute tiles [begin, end). Called concurrently with disjoint ranges; `thread` < threads
  // selects thread-local state.
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

// Instruction sets that a kernel may be built for; the machine's best is used, or the one that
// GALLEY_CPU_ISA names. avx512 means F, BW, VL, DQ, BF16 and VNNI together; amx means these, VBMI
// and tiles of bf16 and int8, which linear kernels use. Read when an op is made, never while it runs.
// Throws where GALLEY_CPU_ISA names a set that the machine lacks.
enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2, amx = 3 };
Isa isa();
const char* isa_name(Isa isa);

// An op of a program and its cost so far.
struct OpTiming {
  std::string name;
  int64_t runs, nanoseconds;
};

// The plan's columns: [n] each.
struct StepRows {
  const int32_t* slots = nullptr;
  const int32_t* num_new = nullptr;      // tokens to compute
  const int32_t* num_logits = nullptr;   // last positions that yield logits
  const int32_t* num_sampled = nullptr;  // last positions that a token is sampled for
  int32_t n = 0;
};

// The recorded ops, numbered in the order in which they run.
class Program {
 public:
  // `limits`: the most that a step may hold, by dimension; tokens, sequences and logits are
  // required.
  Program(std::shared_ptr<Pool> pool, int32_t num_slots,
          const std::map<std::string, int64_t>& limits);
  // Binds a column, or binds it to another array. `history` [slots][max_len] (all tokens of a slot)
  // and `num_computed` [slots] are required. Must not be called during a run.
  void bind(const std::string& name, const std::string& dtype, const void* data, int64_t stride);
  void unbind(const std::string& name);
  // The number of the op.
  int add(const std::string& name, Args args);
  Environment& environment() { return environment_; }
  const Environment& environment() const { return environment_; }
  // The size of a dimension that is not prepared from the plan, for the runs to come.
  void resize(const std::string& dimension, int64_t size);
  // Prepares the step from the table and the plan, then runs ops [first, last) and op `then`, if it is not -1.
  // Throws before the first op where a column is out of bounds.
  void run(const StepRows& rows, int first, int last, int then = -1);
  int size() const { return static_cast<int>(ops_.size()); }
  // A number that is incremented after each op (null = none); a watcher can tell a long step from
  // one that hangs.
  void set_heartbeat(int64_t* counter);
  void profile(bool on);
  std::vector<OpTiming> timings();
  const Step& step() const { return step_; }

 private:
  struct Entry {
    std::unique_ptr<Op> op;
    OpTiming timing;
  };
  void publish();
  void prepare(const StepRows& rows);
  void check(const StepRows& rows);
  void run_op(Entry& entry);

  std::shared_ptr<Pool> pool_;
  int32_t num_slots_;
  Environment environment_;
  ColumnOf<int32_t> history_, num_computed_;
  std::vector<Entry> ops_;
  bool profile_ = false;
  int64_t* heartbeat_ = nullptr;
  std::mutex running_;  // one run at a time: the arrays below are shared
  Step step_;
  std::vector<int32_t> slots_, query_start_, computed_, token_ids_, positions_, token_row_,
      logit_index_, logit_row_;
  std::vector<uint8_t> logit_sampled_;
};

}  // namespace galley
