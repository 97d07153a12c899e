// Op `probe`: measures the machine's limits, for rooflines; not part of any model.
// Pointers: data? (read), done (int64 [threads]: operations, or bytes, of each thread's tile).
// Ints: what (0 read memory, 1 f32, 2 bf16, 3 int8 multiply-adds), size (bytes to read in all, or
// rounds per thread). Tile: a thread's share.
#include "probe_kernel.h"

namespace galley {
namespace {

class Probe final : public Op {
 public:
  explicit Probe(const Args& a)
      : data_(a.ptr_or_null<uint8_t>("data")), done_(a.ptr<int64_t>("done")), size_(a.size("size")),
        what_(a.choice<int>("what", 4, 0)) {
    if (what_ == 0 && data_ == nullptr) {
      throw std::invalid_argument("missing pointer argument: data");
    }
    if (what_ > 0) {
      int64_t (*const kernels[])(int64_t) = {GALLEY_PICK(probe_f32), GALLEY_PICK_TILES(probe_bf16),
                                             GALLEY_PICK_TILES(probe_int8)};
      arithmetic_ = kernels[what_ - 1];
    }
  }

  int64_t tiles(const Step&, int threads) const override { return tiles_ = threads; }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    for (int64_t tile = begin; tile < end; tile++) {
      if (arithmetic_ != nullptr) {
        done_[tile] = arithmetic_(size_);
        continue;
      }
      const int64_t share = size_ / tiles_ / 4096 * 4096;
      read_(data_ + tile * share, share);
      done_[tile] = share;
    }
  }

 private:
  const uint8_t* data_;
  int64_t* done_;
  int64_t size_;
  int what_;
  mutable int64_t tiles_ = 1;
  decltype(&generic::probe_read) read_ = GALLEY_PICK(probe_read);
  int64_t (*arithmetic_)(int64_t) = nullptr;
};

GALLEY_OP(probe, Probe);

}  // namespace
}  // namespace galley
