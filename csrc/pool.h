// A pool of threads that run the tiles of one job at a time; the caller is thread 0.
//
//   tiles  0 ............ n/3 ............ 2n/3 ............ n
//          |-- thread 0 -->|-- thread 1 ->|--- thread 2 ---->|   each walks its own range forwards;
//                     <----|         <----|             <----|   an idle thread steals from the far
//                                                                end of another's range
// A thread's range is one word (next, end). Tiles are claimed by compare-and-swap on it, and
// everything else about the job is read only after a claim: a job cannot end while a claimed tile
// is unfinished, so a late thread either claims a tile of the job that is running or nothing.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace galley {

class Pool {
 public:
  // `run` computes tiles [begin, end); `thread` < threads() selects scratch memory.
  using Run = void (*)(void* job, int64_t begin, int64_t end, int thread);

  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(ranges_.size()); }
  // Call before the jobs of a step; sleeping workers may be woken for the first of them. `small`:
  // the jobs are so short that losing a core for a moment costs more than a second thread gains.
  // After a small step has waited long for another thread, small steps run single-threaded for a
  // while. In a forked child, where the workers do not exist, every step does.
  void begin_step(bool small);
  // Returns when all tiles are done; rethrows the first exception of a tile. `grain`: the fewest
  // tiles that are claimed at a time. One caller at a time (others wait).
  void run(int64_t tiles, int64_t grain, Run run, void* job);

 private:
  struct alignas(64) Range {
    std::atomic<uint64_t> word{0};  // next << 32 | end
  };
  using Clock = std::chrono::steady_clock;
  bool claim(Range& range, bool far_end, int64_t* begin, int64_t* end) const;
  void drain(int thread);
  void work(int64_t begin, int64_t end, int thread);
  void wait_until_done();
  void on_preempted();
  void wake_workers();
  uint32_t wait_for_epoch(uint32_t seen);
  void worker(int thread);

  // Data that several threads write has its own cache lines: fetching a line that the other core
  // has written takes about 150 ns, and a step has hundreds of jobs.
  std::vector<Range> ranges_;
  struct alignas(64) Job {
    std::atomic<uint32_t> epoch{0};  // incremented for every job, after all else is set
    Run run = nullptr;
    void* job = nullptr;
    std::atomic<int64_t> grain{1};  // read before a claim, when any value is safe
  } now_;
  alignas(64) std::atomic<int64_t> remaining_{0};
  // For sleeping; touched only after a spin has timed out.
  struct Sleep {
    std::mutex mutex;
    std::condition_variable work, done;
  };
  alignas(64) std::unique_ptr<Sleep> sleep_{new Sleep};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stop_{false};
  // Used by the caller alone.
  alignas(64) std::mutex callers_;
  std::exception_ptr error_;
  Clock::time_point last_wake_;
  int64_t owner_process_;
  // The current step, and until when small steps run single-threaded.
  bool small_ = false;
  std::atomic<bool> single_threaded_{false};
  Clock::time_point single_threaded_until_;
  Clock::duration single_threaded_for_{};
  alignas(64) std::vector<std::thread> workers_;
};

}  // namespace galley
