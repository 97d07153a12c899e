// Op `selective_scan`: the state space recurrence of Mamba-1, per channel
// (selective_scan_kernel.h). Pointers: x, dt, gate? (f32 [tokens][channels]), b, c (f32
// [tokens][state_size]), a_log (f32 [channels][state_size]: a = -exp(a_log)), d (f32 [channels]),
// state, out (f32 [tokens][channels]). Ints: channels, state_size, x_stride?, dt_stride?, b_stride?,
// c_stride?, gate_stride?, and those of the state (state.h), whose units are runs of 16 channels.
#include "selective_scan_kernel.h"

#include <cmath>
#include <vector>

#include "state.h"

namespace galley {
namespace {

class SelectiveScan final : public StateOp {
 public:
  explicit SelectiveScan(const Args& a)
      : StateOp(StateCache(a, (a.size("channels") + kScanChannels - 1) / kScanChannels,
                           a.size("state_size") * kScanChannels)),
        channels_(a.size("channels")), state_size_(a.size("state_size")),
        x_(rows_argument(a, "x", channels_)), dt_(rows_argument(a, "dt", channels_)),
        b_(rows_argument(a, "b", state_size_)), c_(rows_argument(a, "c", state_size_)),
        gate_(rows_argument(a, "gate", channels_, true)), out_(a.ptr<float>("out")),
        kernel_(GALLEY_PICK(selective_scan_run)) {
    // By unit: a times log2(e), [state_size][kScanChannels], then d; channels that do not exist are zeros.
    const float* a_log = a.ptr<float>("a_log");
    const float* d = a.ptr<float>("d");
    constants_.resize(state_.units() * (state_size_ + 1) * kScanChannels);
    for (int64_t c = 0; c < channels_; c++) {
      float* unit = constants_.data() + c / kScanChannels * (state_size_ + 1) * kScanChannels;
      for (int64_t n = 0; n < state_size_; n++) {
        unit[n * kScanChannels + c % kScanChannels] =
            -1.44269504f * std::exp(a_log[c * state_size_ + n]);
      }
      unit[state_size_ * kScanChannels + c % kScanChannels] = d[c];
    }
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t unit = tile / step.rows, start = unit * kScanChannels;
      const float* constants = constants_.data() + start * (state_size_ + 1);
      const auto update = [&](float* state, int64_t token, int64_t count) {
        SelectiveRun run{};
        run.x = x_.row(token) + start, run.x_stride = x_.stride;
        run.dt = dt_.row(token) + start, run.dt_stride = dt_.stride;
        run.b = b_.row(token), run.b_stride = b_.stride;
        run.c = c_.row(token), run.c_stride = c_.stride;
        run.gate = gate_ ? gate_.row(token) + start : nullptr, run.gate_stride = gate_.stride;
        run.out = out_ + token * channels_ + start, run.out_stride = channels_;
        run.channels = std::min(kScanChannels, channels_ - start);
        run.state_size = state_size_, run.count = count;
        run.a = constants, run.d = constants + state_size_ * kScanChannels;
        kernel_(run, state);
      };
      state_.for_each_run(step, static_cast<int32_t>(tile % step.rows), unit, update);
    }
  }

 private:
  int64_t channels_, state_size_;
  Rows x_, dt_, b_, c_, gate_;
  float* out_;
  std::vector<float> constants_;
  decltype(&generic::selective_scan_run) kernel_;
};

GALLEY_OP(selective_scan, SelectiveScan);

}  // namespace
}  // namespace galley
