// Op `ssd_scan`: the state space recurrence of Mamba-2, per head (ssd_scan_kernel.h); out = y, or
// y * silu(gate * gate_scale). Pointers: x (f32 [tokens][heads * head_dim]), b, c (f32
// [tokens][groups * state_size]; head h reads group h / (heads / groups)), dt (f32
// [tokens][heads]), gate? (like x), a_log (f32 [heads]: a = -exp(a_log)), d, dt_bias (f32 [heads]),
// state, out (f32 [tokens][heads * head_dim]). Ints: heads, head_dim, groups, state_size,
// x_stride?, b_stride?, c_stride?, dt_stride?, gate_stride?, and those of the state (state.h),
// whose units are heads. Floats: dt_scale?, dt_min?, dt_max?, gate_scale?.
#include "ssd_scan_kernel.h"

#include <limits>

#include "scratch.h"
#include "state.h"

namespace galley {
namespace {

int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

class SsdScan final : public StateOp {
 public:
  explicit SsdScan(const Args& a)
      : StateOp(StateCache(a, a.size("heads"), a.size("state_size") * padded(a.size("head_dim")) + 16)),
        heads_(a.size("heads")), head_dim_(a.size("head_dim")), groups_(a.size("groups")),
        state_size_(a.size("state_size")), x_(rows_argument(a, "x", heads_ * head_dim_)),
        b_(rows_argument(a, "b", groups_ * state_size_)),
        c_(rows_argument(a, "c", groups_ * state_size_)), dt_(rows_argument(a, "dt", heads_)),
        gate_(rows_argument(a, "gate", heads_ * head_dim_, true)), a_log_(a.ptr<float>("a_log")),
        d_(a.ptr<float>("d")), dt_bias_(a.ptr<float>("dt_bias")), out_(a.ptr<float>("out")),
        dt_scale_(a.f("dt_scale", 1.0)), dt_min_(a.f("dt_min", 0.0)),
        dt_max_(a.f("dt_max", std::numeric_limits<float>::infinity())),
        gate_scale_(a.f("gate_scale", 1.0)), kernel_(GALLEY_PICK(ssd_scan_run)) {
    if (heads_ % groups_ != 0) throw std::invalid_argument("groups must divide heads");
  }

  // A long prompt packs b and c once for some heads, if enough tiles are left for the threads.
  void plan(const Step& step, int threads) override {
    StateOp::plan(step, threads);
    const bool is_long = step.tokens >= kSsdTokens * step.rows;
    const bool is_enough = heads_ / kSsdHeads * step.rows >= 2 * threads;
    together_ = is_long && is_enough && heads_ / groups_ % kSsdHeads == 0 ? kSsdHeads : 1;
  }

  int64_t tiles(const Step& step, int threads) const override {
    return StateOp::tiles(step, threads) / together_;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    float* scratch = thread_scratch(ssd_scratch(padded(head_dim_), state_size_));
    const int64_t width = heads_ * head_dim_;
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t head = tile / step.rows * together_, column = head * head_dim_;
      const int64_t group = head / (heads_ / groups_) * state_size_;
      const auto update = [&](float* const* states, int64_t token, int64_t count) {
        SsdRun run{};
        run.x = x_.row(token) + column, run.x_stride = x_.stride;
        run.b = b_.row(token) + group, run.b_stride = b_.stride;
        run.c = c_.row(token) + group, run.c_stride = c_.stride;
        run.dt = dt_.row(token) + head, run.dt_stride = dt_.stride;
        run.gate = gate_ ? gate_.row(token) + column : nullptr, run.gate_stride = gate_.stride;
        run.out = out_ + token * width + column, run.out_stride = width;
        run.heads = together_, run.head_dim = head_dim_, run.state_size = state_size_;
        run.count = count;
        run.a_log = a_log_ + head, run.d = d_ + head, run.dt_bias = dt_bias_ + head;
        run.dt_scale = dt_scale_, run.dt_min = dt_min_, run.dt_max = dt_max_;
        run.gate_scale = gate_scale_;
        kernel_(run, states, scratch);
      };
      state_.for_each_run<kSsdHeads>(step, static_cast<int32_t>(tile % step.rows), head, together_,
                                     update);
    }
  }

 private:
  int64_t heads_, head_dim_, groups_, state_size_, together_ = 1;
  Rows x_, b_, c_, dt_, gate_;
  const float *a_log_, *d_, *dt_bias_;
  float* out_;
  float dt_scale_, dt_min_, dt_max_, gate_scale_;
  decltype(&generic::ssd_scan_run) kernel_;
};

GALLEY_OP(ssd_scan, SsdScan);

}  // namespace
}  // namespace galley
