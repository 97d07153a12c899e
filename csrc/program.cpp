// Op registry, choice of instruction set, preparation and execution of a step.
#include "program.h"

#include <chrono>
#include <cstdlib>

namespace galley {
namespace {

Isa best_isa() {
#if GALLEY_HAS_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return Isa::avx2;
  }
#endif
  return Isa::generic;
}

// A step of no more tokens is a small one (Pool::begin_step).
constexpr int32_t kSmallStep = 4;

struct TilesOfOp {
  Op* op;
  const Step* step;
};

void run_tiles(void* job, int64_t begin, int64_t end, int thread) {
  auto* tiles = static_cast<TilesOfOp*>(job);
  tiles->op->run(*tiles->step, begin, end, thread);
}

[[noreturn]] void out_of_bounds(const char* what, int32_t row, int64_t value, int64_t limit) {
  throw std::invalid_argument(std::string(what) + " of row " + std::to_string(row) + " is " +
                              std::to_string(value) + ", the limit is " + std::to_string(limit));
}

void check_limit(const char* what, int64_t value, int64_t limit) {
  if (value < 0 || value > limit) {
    throw std::invalid_argument(std::string("a step of ") + std::to_string(value) + " " + what +
                                ": the program was built for " + std::to_string(limit));
  }
}

}  // namespace

std::map<std::string, OpMaker>& op_registry() {
  static std::map<std::string, OpMaker> registry;
  return registry;
}

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "generic";
}

Isa isa() {
  static const Isa best = best_isa();
  const char* wanted = std::getenv("GALLEY_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (Isa candidate : {Isa::generic, Isa::avx2, Isa::avx512}) {
    if (isa_name(candidate) != std::string(wanted)) continue;
    if (candidate > best) {
      throw std::invalid_argument(std::string("GALLEY_CPU_ISA is ") + wanted +
                                  ", but this machine's best is " + isa_name(best));
    }
    return candidate;
  }
  throw std::invalid_argument(std::string("GALLEY_CPU_ISA must be generic, avx2 or avx512, is ") +
                              wanted);
}

void Program::add(const std::string& name, const Args& args, int section) {
  auto maker = op_registry().find(name);
  if (maker == op_registry().end()) throw std::invalid_argument("no op is named " + name);
  std::unique_ptr<Op> op;
  try {
    op = maker->second(args);
  } catch (const std::invalid_argument& e) {
    throw std::invalid_argument(name + ": " + e.what());
  }
  std::string unread;
  for (const auto& n : args.unread()) unread += " " + n;
  if (!unread.empty()) throw std::invalid_argument(name + ": unknown arguments:" + unread);
  std::lock_guard<std::mutex> lock(running_);
  ops_.push_back(Entry{std::move(op), OpTiming{name, section, 0, 0}});
}

void Program::bind(const Table& table, const Limits& limits) {
  if (table.num_slots <= 0 || table.history_stride <= 0 || table.table_stride < 0) {
    throw std::invalid_argument("a table needs positive sizes");
  }
  if (!table.history || !table.num_tokens || !table.num_prompt || !table.num_computed) {
    throw std::invalid_argument("a table needs history, num_tokens, num_prompt and num_computed");
  }
  const int32_t b = table.block_size;
  if (b != 16 && b != 32 && b != 64 && b != 128) {
    throw std::invalid_argument("block_size must be 16, 32, 64 or 128, is " + std::to_string(b));
  }
  if (limits.tokens <= 0 || limits.rows <= 0 || limits.logits < 0) {
    throw std::invalid_argument("a program needs positive limits");
  }
  std::lock_guard<std::mutex> lock(running_);
  table_ = table;
  limits_ = limits;
  slots_.resize(limits.rows), computed_.resize(limits.rows), query_start_.resize(limits.rows + 1);
  for (auto* column : {&token_ids_, &positions_, &token_row_}) column->resize(limits.tokens);
  for (auto* column : {&logit_index_, &logit_row_}) column->resize(limits.logits);
  logit_samples_.resize(limits.logits);
  step_ = Step{};
  step_.slots = slots_.data();
  step_.query_start = query_start_.data();
  step_.computed = computed_.data();
  step_.token_ids = token_ids_.data();
  step_.positions = positions_.data();
  step_.token_row = token_row_.data();
  step_.logit_index = logit_index_.data();
  step_.logit_row = logit_row_.data();
  step_.logit_samples = logit_samples_.data();
  step_.block_table = table.block_table;
  step_.table_stride = table.table_stride;
  step_.block_size = table.block_size;
  step_.history = table.history;
  step_.history_stride = table.history_stride;
  step_.num_tokens = table.num_tokens;
  step_.num_prompt = table.num_prompt;
  step_.sampling = table.sampling;
  bound_ = true;
}

void Program::set_logit_masks(const uint64_t* mask, const int32_t* bias_indptr,
                              const int32_t* bias_ids, const float* bias_values) {
  std::lock_guard<std::mutex> lock(running_);
  step_.sampling.mask = mask;
  step_.sampling.bias_indptr = bias_indptr;
  step_.sampling.bias_ids = bias_ids;
  step_.sampling.bias_values = bias_values;
}

void Program::prepare(const int32_t* slots, const int32_t* num_new, const int32_t* num_logits,
                      const int32_t* num_sampled, int32_t n) {
  check_limit("rows", n, limits_.rows);
  int64_t tokens = 0, logits = 0;
  for (int32_t r = 0; r < n; r++) {
    if (slots[r] < 0 || slots[r] >= table_.num_slots) {
      out_of_bounds("slot", r, slots[r], table_.num_slots - 1);
    }
    const int64_t computed = table_.num_computed[slots[r]];
    if (num_new[r] < 0 || computed < 0 || computed + num_new[r] > table_.history_stride) {
      out_of_bounds("length", r, computed + num_new[r], table_.history_stride);
    }
    if (table_.block_table && computed + num_new[r] > table_.table_stride * table_.block_size) {
      out_of_bounds("length", r, computed + num_new[r], table_.table_stride * table_.block_size);
    }
    if (num_logits[r] < 0 || num_logits[r] > num_new[r]) {
      out_of_bounds("num_logits", r, num_logits[r], num_new[r]);
    }
    if (num_sampled[r] < 0 || num_sampled[r] > num_logits[r]) {
      out_of_bounds("num_sampled", r, num_sampled[r], num_logits[r]);
    }
    tokens += num_new[r];
    logits += num_logits[r];
  }
  check_limit("tokens", tokens, limits_.tokens);
  check_limit("logit rows", logits, limits_.logits);

  int32_t t = 0, l = 0;
  for (int32_t r = 0; r < n; r++) {
    const int32_t slot = slots[r], computed = table_.num_computed[slot];
    slots_[r] = slot;
    computed_[r] = computed;
    query_start_[r] = t;
    const int32_t* known = table_.history + slot * table_.history_stride;
    for (int32_t j = 0; j < num_new[r]; j++, t++) {
      token_ids_[t] = known[computed + j];
      positions_[t] = computed + j;
      token_row_[t] = r;
    }
    // The row's last positions give logits; the last num_sampled of these are sampled.
    for (int32_t j = num_logits[r]; j > 0; j--, l++) {
      logit_index_[l] = t - j;
      logit_row_[l] = r;
      logit_samples_[l] = j <= num_sampled[r] ? 1 : 0;
    }
  }
  query_start_[n] = t;
  step_.rows = n;
  step_.tokens = t;
  step_.logits = l;
}

void Program::run(const int32_t* slots, const int32_t* num_new, const int32_t* num_logits,
                  const int32_t* num_sampled, int32_t n, int first_section, int last_section) {
  std::lock_guard<std::mutex> lock(running_);
  if (!bound_) throw std::invalid_argument("a program is run before bind()");
  if (n > 0 && (!slots || !num_new || !num_logits || !num_sampled)) {
    throw std::invalid_argument("a step needs all four columns");
  }
  prepare(slots, num_new, num_logits, num_sampled, n);
  pool_->begin_step(step_.tokens <= kSmallStep);
  for (Entry& entry : ops_) {
    if (entry.timing.section >= first_section && entry.timing.section <= last_section) {
      run_op(entry);
      if (heartbeat_ != nullptr) *static_cast<volatile int64_t*>(heartbeat_) += 1;
    }
  }
}

void Program::run_op(Entry& entry) {
  using Clock = std::chrono::steady_clock;
  TilesOfOp job{entry.op.get(), &step_};
  const auto start = profile_ ? Clock::now() : Clock::time_point{};
  const int64_t tiles = entry.op->tiles(step_, pool_->threads());
  pool_->run(tiles, entry.op->grain(step_), run_tiles, &job);
  if (!profile_) return;
  entry.timing.runs++;
  entry.timing.nanoseconds +=
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

void Program::set_heartbeat(int64_t* heartbeat) {
  std::lock_guard<std::mutex> lock(running_);
  heartbeat_ = heartbeat;
}

void Program::profile(bool on) {
  std::lock_guard<std::mutex> lock(running_);
  profile_ = on;
  if (!on) return;
  for (Entry& entry : ops_) entry.timing.runs = entry.timing.nanoseconds = 0;
}

std::vector<OpTiming> Program::timings() {
  std::lock_guard<std::mutex> lock(running_);
  std::vector<OpTiming> all;
  for (const Entry& entry : ops_) all.push_back(entry.timing);
  return all;
}

}  // namespace galley
