// The thread pool. See pool.h for the idea.
#include "pool.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace galley {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxTiles = int64_t{1} << 31;
// How long to spin before sleeping: about the length of an op. A futex sleep costs some 25 us
// (kernel_study.md, section 5), and a step has hundreds of ops.
constexpr auto kSpin = std::chrono::microseconds(50);
// Sleeping workers are woken at most this often within a step.
constexpr auto kWakeEvery = std::chrono::milliseconds(2);
// A caller that waits this long for the last tiles of a small step was waiting for a preempted
// thread, which lost its core in the middle of a tile (a time slice is 3 ms or more). Small steps
// then run single-threaded, for twice as long each time that this happens again soon.
constexpr auto kPreemptedAfter = std::chrono::milliseconds(1);
constexpr auto kSingleThreadedFirst = std::chrono::milliseconds(50);
constexpr auto kSingleThreadedMost = std::chrono::milliseconds(1600);

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as `ready` is, false when the spin timed out.
template <class Ready> bool spin_until(Ready ready) {
  using Clock = std::chrono::steady_clock;
  for (int i = 0; i < 32; i++) {
    if (ready()) return true;
    pause();
  }
  const auto give_up = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; i++) {
      if (ready()) return true;
      pause();
    }
  } while (Clock::now() < give_up);
  return false;
}

uint64_t range_word(int64_t next, int64_t end) {
  return static_cast<uint64_t>(next) << 32 | static_cast<uint64_t>(end);
}

}  // namespace

Pool::Pool(int threads) : owner_process_(getpid()) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("threads must be 1 .. " + std::to_string(kMaxThreads) + ", is " +
                                std::to_string(threads));
  }
  ranges_ = std::vector<Range>(threads);
  single_threaded_ = threads == 1;
  for (int t = 1; t < threads; t++) workers_.emplace_back([this, t] { worker(t); });
}

Pool::~Pool() {
  if (getpid() != owner_process_) {
    // A forked child: there are no threads to join, and destroying a condition variable on which
    // they seem to wait would block forever.
    for (auto& w : workers_) w.detach();
    sleep_.release();
    return;
  }
  {
    std::lock_guard<std::mutex> lock(sleep_->mutex);
    stop_ = true;
    now_.epoch.fetch_add(1);
  }
  sleep_->work.notify_all();
  for (auto& w : workers_) w.join();
}

void Pool::begin_step(bool small) {
  std::lock_guard<std::mutex> one_caller(callers_);
  small_ = small;
  single_threaded_ = workers_.empty() || getpid() != owner_process_ ||
           (small && Clock::now() < single_threaded_until_);
  last_wake_ = {};
}

void Pool::run(int64_t tiles, int64_t grain, Run run, void* job) {
  if (tiles <= 0) return;
  if (tiles >= kMaxTiles) throw std::invalid_argument("too many tiles: " + std::to_string(tiles));
  if (tiles == 1 || single_threaded_.load(std::memory_order_relaxed)) {
    run(job, 0, tiles, 0);
    return;
  }
  std::lock_guard<std::mutex> one_caller(callers_);
  now_.run = run;
  now_.job = job;
  now_.grain.store(std::max<int64_t>(1, grain), std::memory_order_relaxed);
  error_ = nullptr;
  remaining_.store(tiles, std::memory_order_relaxed);
  const int64_t n = threads();
  for (int64_t t = 0; t < n; t++) {
    ranges_[t].word.store(range_word(t * tiles / n, (t + 1) * tiles / n),
                          std::memory_order_release);
  }
  now_.epoch.fetch_add(1);
  if (sleepers_.load() > 0) wake_workers();
  drain(0);
  wait_until_done();
  if (error_) std::rethrow_exception(error_);
}

// Claims a quarter of the remaining range at a time: few claims, and enough left for others to
// steal.
bool Pool::claim(Range& range, bool far_end, int64_t* begin, int64_t* end) const {
  const int64_t grain = now_.grain.load(std::memory_order_relaxed);
  uint64_t word = range.word.load(std::memory_order_relaxed);
  for (;;) {
    const int64_t next = static_cast<int64_t>(word >> 32);
    const int64_t last = static_cast<int64_t>(word & 0xffffffffu);
    if (next >= last) return false;
    const int64_t take = std::min(last - next, std::max(grain, (last - next) / 4));
    *begin = far_end ? last - take : next;
    *end = *begin + take;
    const uint64_t left = far_end ? range_word(next, *begin) : range_word(*end, last);
    if (range.word.compare_exchange_weak(word, left, std::memory_order_acquire,
                                         std::memory_order_relaxed)) {
      return true;
    }
  }
}

void Pool::drain(int thread) {
  int64_t begin, end;
  while (claim(ranges_[thread], false, &begin, &end)) work(begin, end, thread);
  const int n = threads();
  for (int other = 1; other < n; other++) {
    Range& range = ranges_[(thread + other) % n];
    while (claim(range, true, &begin, &end)) work(begin, end, thread);
  }
}

void Pool::work(int64_t begin, int64_t end, int thread) {
  try {
    now_.run(now_.job, begin, end, thread);
  } catch (...) {
    std::lock_guard<std::mutex> lock(sleep_->mutex);
    if (!error_) error_ = std::current_exception();
  }
  const bool last = remaining_.fetch_sub(end - begin) == end - begin;
  if (last && thread != 0 && caller_sleeps_.load()) {
    std::lock_guard<std::mutex> lock(sleep_->mutex);
    sleep_->done.notify_one();
  }
}

// Rate-limited: with the cores busy, the kernel often puts the woken thread on the caller's core.
void Pool::wake_workers() {
  const auto now = std::chrono::steady_clock::now();
  if (now - last_wake_ < kWakeEvery) return;
  last_wake_ = now;
  std::lock_guard<std::mutex> lock(sleep_->mutex);
  sleep_->work.notify_all();
}

void Pool::wait_until_done() {
  auto done = [this] { return remaining_.load() == 0; };
  if (spin_until(done)) return;
  const auto begin = Clock::now();
  {
    std::unique_lock<std::mutex> lock(sleep_->mutex);
    caller_sleeps_ = true;
    sleep_->done.wait(lock, done);
    caller_sleeps_ = false;
  }
  if (small_ && Clock::now() - begin > kPreemptedAfter) on_preempted();
}

void Pool::on_preempted() {
  const auto now = Clock::now();
  const bool again = now - single_threaded_until_ < 4 * single_threaded_for_;
  single_threaded_for_ =
      again ? std::min<Clock::duration>(2 * single_threaded_for_, kSingleThreadedMost)
            : kSingleThreadedFirst;
  single_threaded_until_ = now + single_threaded_for_;
  single_threaded_ = true;  // also for the rest of this step
}

uint32_t Pool::wait_for_epoch(uint32_t seen) {
  auto changed = [this, seen] { return now_.epoch.load() != seen; };
  if (!spin_until(changed)) {
    std::unique_lock<std::mutex> lock(sleep_->mutex);
    sleepers_.fetch_add(1);
    sleep_->work.wait(lock, changed);
    sleepers_.fetch_sub(1);
  }
  return now_.epoch.load();
}

void Pool::worker(int thread) {
  for (uint32_t seen = 0;;) {
    seen = wait_for_epoch(seen);
    if (stop_) return;
    drain(thread);
  }
}

}  // namespace galley
