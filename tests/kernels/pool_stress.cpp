// Hammers the thread pool: built and run under ThreadSanitizer by test_program.py.
//
// Every job writes plain (non-atomic) memory and reads what the job before it wrote, so a tile that
// is run twice, run late or not waited for is a wrong sum or a reported race.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

struct Job {
  const std::vector<int64_t>* from;
  std::vector<int64_t>* to;
  int pause_us;
  bool fail;
};

void run(void* data, int64_t begin, int64_t end, int) {
  auto* job = static_cast<Job*>(data);
  for (int64_t i = begin; i < end; i++) {
    (*job->to)[i] = (*job->from)[(i + 1) % job->from->size()] + 1;
  }
  if (job->pause_us) std::this_thread::sleep_for(std::chrono::microseconds(job->pause_us));
  if (job->fail) throw std::runtime_error("a tile failed");
}

bool hammer(int threads, int64_t tiles, int64_t grain, int jobs, int pause_us) {
  galley::Pool pool(threads);
  std::vector<int64_t> a(tiles, 0), b(tiles, 0);
  for (int j = 0; j < jobs; j++) {
    Job job{&a, &b, j % 7 == 0 ? pause_us : 0, false};  // sometimes long enough to fall asleep
    pool.run(tiles, grain, run, &job);
    std::swap(a, b);
  }
  for (int64_t value : a) {
    if (value != jobs) return false;
  }
  return true;
}

bool errors_come_through() {
  galley::Pool pool(4);
  std::vector<int64_t> a(64, 0), b(64, 0);
  for (int j = 0; j < 50; j++) {
    Job job{&a, &b, 0, j % 2 == 0};
    bool thrown = false;
    try {
      pool.run(64, 1, run, &job);
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    if (thrown != job.fail) return false;
  }
  return true;
}

bool two_callers_take_turns() {
  galley::Pool pool(3);
  bool right[2] = {};
  auto call = [&](int me) {
    std::vector<int64_t> a(50, 0), b(50, 0);
    for (int j = 0; j < 300; j++) {
      Job job{&a, &b, 0, false};
      pool.run(50, 1, run, &job);
      std::swap(a, b);
    }
    right[me] = a[0] == 300 && a[49] == 300;
  };
  std::thread other(call, 1);
  call(0);
  other.join();
  return right[0] && right[1];
}

// Two tiles that each wait for the other: only two threads at once can end them. The second thread
// is late by so much.
void meet(galley::Pool& pool, int late_ms) {
  struct Meeting {
    std::atomic<int> met{0};
    int late_ms;
  } meeting;
  meeting.late_ms = late_ms;
  auto tile = [](void* data, int64_t, int64_t, int thread) {
    auto* m = static_cast<Meeting*>(data);
    m->met.fetch_add(1);
    while (m->met.load() < 2) std::this_thread::yield();
    if (thread == 1) std::this_thread::sleep_for(std::chrono::milliseconds(m->late_ms));
  };
  pool.run(2, 1, tile, &meeting);
}

// The pause lets the workers fall asleep first.
bool sleeping_workers_are_woken() {
  galley::Pool pool(2);
  for (int j = 0; j < 20; j++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    if (j % 2) pool.begin_step(false);
    meet(pool, 0);
  }
  return true;
}

// Times that a job of many tiles is called, in a step of its own: one where the caller runs alone.
int calls(galley::Pool& pool, bool small) {
  std::atomic<int> count{0};
  auto tile = [](void* data, int64_t, int64_t, int thread) {
    static_cast<std::atomic<int>*>(data)->fetch_add(thread == 0 ? 1 : 1000);
  };
  pool.begin_step(small);
  pool.run(1 << 20, 1, tile, &count);
  return count.load();
}

bool large_steps_never_run_alone() {
  galley::Pool pool(2);
  pool.begin_step(false);
  meet(pool, 5);
  return calls(pool, true) != 1;
}

// After a small step has waited for a preempted thread, small steps run alone for a while, large ones
// do not. On a busy machine the caller may be late itself, or the while may be over: try again then.
bool small_steps_run_alone_after_a_preemption() {
  for (int attempt = 0; attempt < 100; attempt++) {
    galley::Pool pool(2);
    pool.begin_step(true);
    meet(pool, 5);
    if (calls(pool, true) != 1) continue;
    if (calls(pool, false) == 1) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    pool.begin_step(true);
    meet(pool, 0);
    return true;
  }
  return false;
}

}  // namespace

int main() {
  bool right = true;
  for (int threads : {1, 2, 3, 5}) {
    for (int64_t tiles : {1, 2, 7, 100}) {
      right = right && hammer(threads, tiles, 1, 400, 0);
      right = right && hammer(threads, tiles, 1000, 400, 0);
    }
    right = right && hammer(threads, 20, 1, 60, 300);
    for (int i = 0; i < 20; i++) galley::Pool idle(threads);  // made and ended without work
  }
  right = right && errors_come_through() && two_callers_take_turns();
  right = right && sleeping_workers_are_woken() && large_steps_never_run_alone();
  right = right && small_steps_run_alone_after_a_preemption();
  std::puts(right ? "right" : "wrong");
  return right ? 0 : 1;
}
