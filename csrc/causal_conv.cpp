// Op `causal_conv`: per channel c, y[t] = sum over k of weight[c][k] * u[t - taps + 1 + k] + bias[c],
// with u = x * before and zeros before the sequence; out = silu(y) (with `silu`) * after. Pointers:
// x, before?, after? (f32 [tokens][channels]), weight (f32 [channels][taps]), bias?, scale?
// (f32 [channels]: factors of x, folded into the weights), state, out (f32 [tokens][channels]).
// Ints: channels, taps, silu?, x_stride?, before_stride?, after_stride?, and those of the state
// (state.h), whose units are runs of 64 channels.
#include "causal_conv_kernel.h"

#include <vector>

#include "state.h"

namespace galley {
namespace {

class CausalConv final : public StateOp {
 public:
  explicit CausalConv(const Args& a)
      : StateOp(StateCache(a, (a.size("channels") + kConvChannels - 1) / kConvChannels,
                           (a.size("taps") - 1) * kConvChannels)),
        channels_(a.size("channels")), taps_(a.size("taps")), x_(rows_argument(a, "x", channels_)),
        before_(rows_argument(a, "before", channels_, true)),
        after_(rows_argument(a, "after", channels_, true)), out_(a.ptr<float>("out")),
        silu_(a.choice("silu", 2, 0) != 0), kernel_(GALLEY_PICK(causal_conv_run)) {
    // By unit: [taps][kConvChannels], then the bias; channels that do not exist are zeros.
    const float* weight = a.ptr<float>("weight");
    const float* bias = a.ptr_or_null<float>("bias");
    const float* scale = a.ptr_or_null<float>("scale");
    weights_.resize(state_.units() * (taps_ + 1) * kConvChannels);
    for (int64_t c = 0; c < channels_; c++) {
      float* unit = weights_.data() + c / kConvChannels * (taps_ + 1) * kConvChannels;
      for (int64_t k = 0; k < taps_; k++) {
        unit[k * kConvChannels + c % kConvChannels] =
            weight[c * taps_ + k] * (scale ? scale[c] : 1.0f);
      }
      unit[taps_ * kConvChannels + c % kConvChannels] = bias ? bias[c] : 0.0f;
    }
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t unit = tile / step.rows, start = unit * kConvChannels;
      const float* weight = weights_.data() + start * (taps_ + 1);
      const int64_t channels = std::min(kConvChannels, channels_ - start);
      const auto update = [&](float* state, int64_t token, int64_t count) {
        const ConvRun run{x_.row(token) + start,
                          before_ ? before_.row(token) + start : nullptr,
                          after_ ? after_.row(token) + start : nullptr,
                          out_ + token * channels_ + start,
                          x_.stride,
                          before_.stride,
                          after_.stride,
                          channels_,
                          channels,
                          taps_,
                          count,
                          weight,
                          weight + taps_ * kConvChannels,
                          silu_};
        kernel_(run, state);
      };
      state_.for_each_run(step, static_cast<int32_t>(tile % step.rows), unit, update);
    }
  }

 private:
  int64_t channels_, taps_;
  Rows x_, before_, after_;
  float* out_;
  bool silu_;
  std::vector<float> weights_;
  decltype(&generic::causal_conv_run) kernel_;
};

GALLEY_OP(causal_conv, CausalConv);

}  // namespace
}  // namespace galley
