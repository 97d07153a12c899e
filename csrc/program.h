// A program: the list of ops that one engine step runs, in one native call.
//
// Python records the model's forward pass once (galley/kernels/cpu.py) and adds each op here by
// name with named arguments; pointers into the arena, the weights and the KV cache are fixed at
// that time. What changes from step to step is `Step`: how many tokens, sequences and logit rows
// there are, and the columns that describe them.
//
// An op is cut into tiles. The pool gives every thread a contiguous range of tiles; a thread that
// is done steals from the far end of another's range. All tiles of an op end before the next op
// starts. A tile's result depends on nothing but its inputs (the invariance rule: which thread
// ran it, how many tiles there are and what else is in the batch never change a bit).
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

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
inline int32_t row_count(const Step& s, Rows k) {
  return k == Rows::tokens ? s.tokens : k == Rows::logits ? s.logits : s.rows;
}

// Kinds of activation values. q8: see linear.h (int8 per group of 32 with scale and sum).
enum class Kind : int { f32 = 0, bf16 = 1, q8 = 2, q8_row = 3 };

// Named arguments of an op, as Python gave them. Unknown or missing names are errors.
class Args {
 public:
  std::map<std::string, uint64_t> pointers;
  std::map<std::string, int64_t> ints;
  std::map<std::string, double> floats;
  template <class T> T* ptr(const std::string& name) const {
    auto it = pointers.find(name);
    if (it == pointers.end()) throw std::invalid_argument("missing pointer argument: " + name);
    return reinterpret_cast<T*>(it->second);
  }
  template <class T> T* ptr_or_null(const std::string& name) const {
    auto it = pointers.find(name);
    return it == pointers.end() ? nullptr : reinterpret_cast<T*>(it->second);
  }
  int64_t i(const std::string& name) const {
    auto it = ints.find(name);
    if (it == ints.end()) throw std::invalid_argument("missing integer argument: " + name);
    return it->second;
  }
  int64_t i(const std::string& name, int64_t otherwise) const {
    auto it = ints.find(name);
    return it == ints.end() ? otherwise : it->second;
  }
  double f(const std::string& name) const {
    auto it = floats.find(name);
    if (it == floats.end()) throw std::invalid_argument("missing float argument: " + name);
    return it->second;
  }
};

class Op {
 public:
  virtual ~Op() = default;
  // Number of tiles for this step's counts; 0 = nothing to do. May depend on `threads` only
  // where a tile's borders cannot change its result.
  virtual int64_t tiles(const Step& step, int threads) const = 0;
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
// that GALLEY_CPU_ISA names. avx512 means F, BW, VL, DQ, BF16 and VNNI together.
enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2 };
Isa isa();

}  // namespace galley
