// A pool of threads that run the tiles of one job at a time; the caller is thread 0.
//
//   tiles  0 ............ n/3 ............ 2n/3 ............ n
//          |-- thread 0 -->|-- thread 1 ->|--- thread 2 ---->|   each walks its own range forwards;
//                     <----|         <----|             <----|   one that is done takes from the
//                                                                far end of another's
// A thread's range is one word (next, end). Tiles are claimed by compare-and-swap on it, and
// everything else about the job is read only after a claim: a job cannot end while a claimed tile
// is unfinished, so a late thread either claims a tile of the job that is really running or
// nothing at all.
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
  // Many jobs are about to come: workers that sleep may be woken for the first of them. `small`: the
  // jobs are so short that losing a core for a moment costs more than a second thread brings. Such
  // steps are the caller's alone for a while after one of them has waited long for another thread.
  // In a forked child, where the workers do not exist, all are.
  void begin_step(bool small);
  // Returns when all tiles are done; rethrows the first exception of a tile. `grain`: tiles that
  // are claimed at least at a time. One caller at a time (others wait).
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
  void lost_a_slice();
  void wake_workers();
  uint32_t wait_for_epoch(uint32_t seen);
  void worker(int thread);

  // What threads write in turn lies on lines of its own: one that the other core has written takes
  // some 150 ns to come over, and a step has hundreds of jobs.
  std::vector<Range> ranges_;
  struct alignas(64) Job {
    std::atomic<uint32_t> epoch{0};  // bumped for every job, when all else is set
    Run run = nullptr;
    void* job = nullptr;
    std::atomic<int64_t> grain{1};  // read before a claim, where any value will do
  } now_;
  alignas(64) std::atomic<int64_t> remaining_{0};
  // The sleeping side, touched only after a spin has been in vain.
  struct Sleep {
    std::mutex mutex;
    std::condition_variable work, done;
  };
  alignas(64) std::unique_ptr<Sleep> sleep_{new Sleep};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stop_{false};
  // The caller's own.
  alignas(64) std::mutex callers_;
  std::exception_ptr error_;
  Clock::time_point last_wake_;
  int64_t owner_process_;
  // Of the step that goes on, and until when small ones run alone.
  bool small_ = false;
  std::atomic<bool> alone_{false};
  Clock::time_point alone_until_;
  Clock::duration alone_for_{};
  alignas(64) std::vector<std::thread> workers_;
};

}  // namespace galley
