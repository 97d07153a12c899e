// Op registry, choice of instruction set, preparation and execution of a step. See program.h.
#include "program.h"

#include <chrono>
#include <cstdlib>
#include <type_traits>

#if GALLEY_HAS_X86 && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace galley {
namespace {

#if GALLEY_HAS_X86
// Whether the CPU has AMX with bf16 and int8, and VBMI, and the system lets this process use it. Linux wants to
// be asked, once for all threads; it refuses where a signal stack of a thread is too small.
bool has_tiles() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx512vbmi") && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
         (d & kAll) == kAll &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

Isa best_isa() {
#if GALLEY_HAS_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
    return has_tiles() ? Isa::amx : Isa::avx512;
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

}  // namespace

std::map<std::string, OpMaker>& op_registry() {
  static std::map<std::string, OpMaker> registry;
  return registry;
}

const char* isa_name(Isa isa) {
  constexpr const char* kNames[] = {"generic", "avx2", "avx512", "amx"};
  return kNames[static_cast<int>(isa)];
}

Isa isa() {
  static const Isa best = best_isa();
  const char* requested = std::getenv("GALLEY_CPU_ISA");
  if (requested == nullptr || *requested == '\0') return best;
  for (Isa candidate : {Isa::generic, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (isa_name(candidate) != std::string(requested)) continue;
    if (candidate > best) {
      throw std::invalid_argument(std::string("GALLEY_CPU_ISA is ") + requested +
                                  ", but this machine's best is " + isa_name(best));
    }
    return candidate;
  }
  throw std::invalid_argument(std::string("GALLEY_CPU_ISA must be generic, avx2, avx512 or amx, is ") +
                              requested);
}

Dim Args::rows() const {
  if (ints.count("rows")) throw std::invalid_argument("rows must be (dimension, times)");
  const auto [base, times] = get(dims, "rows", {"tokens", 1});
  if (times <= 0) throw std::invalid_argument("rows must be a positive multiple of a dimension");
  return {environment_->dimensions.index(base), times};
}

Program::Program(std::shared_ptr<Pool> pool, int32_t num_slots,
                 const std::map<std::string, int64_t>& limits)
    : pool_(std::move(pool)), num_slots_(num_slots) {
  if (!pool_) throw std::invalid_argument("a program needs a pool");
  if (num_slots <= 0) throw std::invalid_argument("a program needs slots");
  Dimensions& dimensions = environment_.dimensions;
  for (const char* name : {"tokens", "sequences", "logits"}) {  // kTokens, kSequences, kLogits
    const auto limit = limits.find(name);
    if (limit == limits.end() || limit->second < (name == std::string("logits") ? 0 : 1)) {
      throw std::invalid_argument(std::string("a program needs a positive limit of ") + name);
    }
    dimensions.add(name, limit->second);
  }
  for (const auto& [name, limit] : limits) {
    if (name != "tokens" && name != "sequences" && name != "logits") dimensions.add(name, limit);
  }
  const int64_t tokens = dimensions.limit(kTokens), rows = dimensions.limit(kSequences);
  const int64_t logits = dimensions.limit(kLogits);
  slots_.resize(rows), computed_.resize(rows), query_start_.resize(rows + 1);
  for (auto* column : {&token_ids_, &positions_, &token_row_}) column->resize(tokens);
  for (auto* column : {&logit_index_, &logit_row_}) column->resize(logits);
  logit_sampled_.resize(logits);
  step_.sizes = dimensions.sizes();
  publish();
  history_ = environment_.columns.get_optional<int32_t>("history");
  num_computed_ = environment_.columns.get_optional<int32_t>("num_computed");
}

// Makes the prepared arrays known to ops: in the step, and as columns.
void Program::publish() {
  auto column = [this](const char* name, const auto& values) {
    using T = typename std::decay_t<decltype(values)>::value_type;
    environment_.columns.bind(name, dtype_of<T>(), values.data(), 1);
    return values.data();
  };
  step_.slots = column("slots", slots_);
  step_.query_start = column("query_start", query_start_);
  step_.computed = column("computed", computed_);
  step_.token_ids = column("token_ids", token_ids_);
  step_.positions = column("positions", positions_);
  step_.token_row = column("token_row", token_row_);
  step_.logit_index = column("logit_index", logit_index_);
  step_.logit_row = column("logit_row", logit_row_);
  step_.logit_sampled = column("logit_sampled", logit_sampled_);
}

void Program::bind(const std::string& name, const std::string& dtype, const void* data,
                   int64_t stride) {
  std::lock_guard<std::mutex> lock(running_);
  environment_.columns.bind(name, dtype, data, stride);
}

void Program::unbind(const std::string& name) {
  std::lock_guard<std::mutex> lock(running_);
  environment_.columns.unbind(name);
}

int Program::add(const std::string& name, Args args) {
  auto maker = op_registry().find(name);
  if (maker == op_registry().end()) throw std::invalid_argument("no op is named " + name);
  std::lock_guard<std::mutex> lock(running_);
  std::unique_ptr<Op> op;
  try {
    op = maker->second(args);
  } catch (const std::invalid_argument& e) {
    throw std::invalid_argument(name + ": " + e.what());
  }
  std::string unread;
  for (const auto& n : args.unread()) unread += " " + n;
  if (!unread.empty()) throw std::invalid_argument(name + ": unknown arguments:" + unread);
  ops_.push_back(Entry{std::move(op), OpTiming{name, 0, 0}});
  return size() - 1;
}

void Program::resize(const std::string& dimension, int64_t size) {
  std::lock_guard<std::mutex> lock(running_);
  Dimensions& dimensions = environment_.dimensions;
  const int32_t index = dimensions.index(dimension);
  if (index <= kLogits) throw std::invalid_argument(dimension + " are counted by the program");
  dimensions.set(index, size);
}

void Program::check(const StepRows& s) {
  if (!history_ || !num_computed_) {
    throw std::invalid_argument("a program needs the columns history and num_computed");
  }
  if (s.n > 0 && (!s.slots || !s.num_new || !s.num_logits || !s.num_sampled)) {
    throw std::invalid_argument("a step needs slots, num_new, num_logits and num_sampled");
  }
  Dimensions& dimensions = environment_.dimensions;
  dimensions.set(kSequences, s.n);
  int64_t tokens = 0, logits = 0;
  for (int32_t r = 0; r < s.n; r++) {
    if (s.slots[r] < 0 || s.slots[r] >= num_slots_) {
      out_of_bounds("slot", r, s.slots[r], num_slots_ - 1);
    }
    const int64_t computed = num_computed_[s.slots[r]], end = computed + s.num_new[r];
    if (s.num_new[r] < 0 || computed < 0 || end > history_.stride()) {
      out_of_bounds("length", r, end, history_.stride());
    }
    if (s.num_logits[r] < 0 || s.num_logits[r] > s.num_new[r]) {
      out_of_bounds("num_logits", r, s.num_logits[r], s.num_new[r]);
    }
    if (s.num_sampled[r] < 0 || s.num_sampled[r] > s.num_logits[r]) {
      out_of_bounds("num_sampled", r, s.num_sampled[r], s.num_logits[r]);
    }
    tokens += s.num_new[r];
    logits += s.num_logits[r];
  }
  dimensions.set(kTokens, tokens);
  dimensions.set(kLogits, logits);
}

void Program::prepare(const StepRows& s) {
  check(s);
  int32_t t = 0, l = 0;
  for (int32_t r = 0; r < s.n; r++) {
    const int32_t slot = s.slots[r], computed = num_computed_[slot];
    slots_[r] = slot;
    computed_[r] = computed;
    query_start_[r] = t;
    const int32_t* known = history_.row(slot);
    for (int32_t j = 0; j < s.num_new[r]; j++, t++) {
      token_ids_[t] = known[computed + j];
      positions_[t] = computed + j;
      token_row_[t] = r;
    }
    // The row's last positions give logits; the last num_sampled of these are sampled.
    for (int32_t j = s.num_logits[r]; j > 0; j--, l++) {
      logit_index_[l] = t - j;
      logit_row_[l] = r;
      logit_sampled_[l] = j <= s.num_sampled[r] ? 1 : 0;
    }
  }
  query_start_[s.n] = t;
  step_.number++;
  step_.rows = s.n;
  step_.tokens = t;
  step_.logits = l;
}

void Program::run(const StepRows& rows, int first, int last, int then) {
  std::lock_guard<std::mutex> lock(running_);
  if (then < -1 || then >= size()) throw std::invalid_argument("no op " + std::to_string(then));
  if (first < 0 || first > last || last > size()) {
    throw std::invalid_argument("ops " + std::to_string(first) + " to " + std::to_string(last) +
                                " of a program of " + std::to_string(size()));
  }
  prepare(rows);
  const int end = then < 0 ? last : last + 1;
  const auto op_at = [&](int i) -> Entry& { return ops_[i < last ? i : then]; };
  for (int i = first; i < end; i++) op_at(i).op->plan(step_, pool_->threads());
  pool_->begin_step(step_.tokens <= kSmallStep);
  for (int i = first; i < end; i++) {
    run_op(op_at(i));
    if (heartbeat_ != nullptr) *static_cast<volatile int64_t*>(heartbeat_) += 1;
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

void Program::set_heartbeat(int64_t* counter) {
  std::lock_guard<std::mutex> lock(running_);
  heartbeat_ = counter;
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
