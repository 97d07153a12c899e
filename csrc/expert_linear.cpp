// Op `expert_up`: the gate and up projections of the chosen experts, and the activation. Pointers:
// x (rows by place, of x_kind), chosen, gate_up (experts.h: the weights of all gates, then of all
// ups; or of each expert's gate and up, interleaved; or of all ups alone, without gates), bias? (f32,
// of all outputs), out (rows by place). Ints: n (columns of out), k, experts, top_k, x_kind, out_kind
// (f32, bf16, q8, q16), interleaved? (1 = in runs of 16 outputs), activation (0 SiLU, 1 GELU, 2 clamped
// SwiGLU; 3 none: out is f32 and has the 2 n columns of gate and up in the order of the weights; 4
// without gates: the square of ReLU). Floats: alpha?, limit?.
// Tile: 32 columns of out, for up to 240 places of one expert.
//
// Op `expert_down`: out[t] = the sum over the token's experts, in ascending order, of weight * (x @
// W.T + bias). Pointers: x (rows by place, of x_kind), chosen, down, bias?, out (f32 [tokens][n]).
// Ints: n, k, experts, top_k, x_kind, weigh? (default 1; 0 = every weight is 1). Tile: one panel of
// 32 outputs, all experts and tokens.
#include <algorithm>
#include <cstring>

#include "attention.h"
#include "clamped_swiglu_kernel.h"
#include "experts.h"
#include "linear_variants.h"
#include "scratch.h"

namespace galley {
namespace {

// A job for rows from `x` on whose outputs from panel `panel` on go to y[rows][stride].
LinearJob job_for(const LinearJob& of, const uint8_t* x, int64_t panel, float* y, int64_t stride) {
  LinearJob job = of;
  job.x = x;
  job.out_bytes = stride * 4;
  job.out = reinterpret_cast<uint8_t*>(y - panel * kPanel);
  return job;
}

int64_t scratch_floats(const std::vector<LinearJob>& jobs) {
  int64_t bytes = 0;
  for (const LinearJob& job : jobs) {
    bytes = std::max(bytes, linear_scratch_bytes(job.weight, job.x_kind));
  }
  return round_up(bytes, 64) / 4;
}

enum class Activation : int { silu = 0, gelu = 1, clamped_swiglu = 2, none = 3, relu2 = 4 };

class ExpertUp final : public Op {
 public:
  explicit ExpertUp(const Args& a)
      : x_(a.ptr<uint8_t>("x")), out_(a.ptr<uint8_t>("out")), n_(a.size("n")),
        experts_(a.size("experts")), out_kind_(a.kind("out_kind")),
        order_(a.choice("interleaved", 2, GateUp::halves)), activation_(a.choice("activation", 5, Activation::silu)),
        alpha_(static_cast<float>(a.f("alpha", 0.0))), limit_(static_cast<float>(a.f("limit", 0.0))),
        runs_(expert_runs(a, "chosen")) {
    const bool apart = order_ == GateUp::halves, gated = activation_ != Activation::relu2;
    const int64_t k = a.size("k");
    const Kind x_kind = a.kind("x_kind");
    jobs_ = expert_jobs(a, "gate_up", apart && gated ? 2 * experts_ : experts_, apart ? n_ : 2 * n_, k,
                        x_kind);
    if (!apart && !gated) throw std::invalid_argument("no gates to be interleaved");
    if (!apart && n_ % 16 != 0) throw std::invalid_argument("interleaved gate and up need n % 16 = 0");
    if (out_kind_ == Kind::q8_row) throw std::invalid_argument("expert_up: out_kind q8_row");
    if (activation_ == Activation::none && out_kind_ != Kind::f32) {
      throw std::invalid_argument("expert_up: without activation out_kind must be f32");
    }
    x_bytes_ = activation_bytes(x_kind, k);
    out_bytes_ = activation_bytes(out_kind_, n_);
    across_ = (n_ + kPanel - 1) / kPanel;
    linear_floats_ = scratch_floats(jobs_);
    tile_bytes_ = 2 * jobs_[0].weight.panel_bytes();
  }

  void plan(const Step& step, int threads) override { runs_->make_once(step, threads); }

  int64_t tiles(const Step&, int) const override {
    return static_cast<int64_t>(runs_->pieces.size()) * across_;
  }

  int64_t grain(const Step&) const override {
    return std::max<int64_t>(1, kStreamBytes / tile_bytes_);
  }

  void run(const Step&, int64_t begin, int64_t end, int) override {
    float* scratch = thread_scratch(linear_floats_ + (kChunkRows * 2 + 1) * kPanel);
    float* y = scratch + linear_floats_;
    for (int64_t tile = begin; tile < end; tile++) {
      compute(runs_->pieces[tile / across_], tile % across_, reinterpret_cast<uint8_t*>(scratch), y,
              y + kChunkRows * kStride);
    }
  }

 private:
  static constexpr int64_t kStride = 2 * kPanel, kStreamBytes = 1 << 20;

  // Columns [32 * tile, ..) of out. y: [places][kStride]; activated: [32].
  void compute(const ExpertRun& piece, int64_t tile, uint8_t* scratch, float* y,
               float* activated) const {
    const int64_t rows = piece.end - piece.begin, first = tile * kPanel;
    const int64_t width = std::min(kPanel, n_ - first);
    const uint8_t* x = x_ + piece.begin * x_bytes_;
    const LinearJob& gate = jobs_[piece.expert];
    if (order_ == GateUp::interleaved16) {
      const int64_t panel = 2 * tile, count = std::min<int64_t>(2, gate.weight.panels() - panel);
      kernel_(job_for(gate, x, panel, y, kStride), panel, count, 0, rows, scratch);
    } else {
      kernel_(job_for(gate, x, tile, y, kStride), tile, 1, 0, rows, scratch);
      if (activation_ != Activation::relu2) {
        const LinearJob& up = jobs_[experts_ + piece.expert];
        kernel_(job_for(up, x, tile, y + width, kStride), tile, 1, 0, rows, scratch);
      }
    }
    for (int64_t r = 0; r < rows && activation_ == Activation::none; r++) {
      keep(y + r * kStride, first, width, reinterpret_cast<float*>(out_) + (piece.begin + r) * 2 * n_);
    }
    for (int64_t r = 0; r < rows && activation_ != Activation::none; r++) {
      activate(y + r * kStride, width, activated);
      store_columns_(activated, first, width, n_, out_kind_, out_ + (piece.begin + r) * out_bytes_);
    }
  }

  // Stores gate and up as they are in a row of out.
  void keep(const float* gate_up, int64_t first, int64_t width, float* out) const {
    if (order_ == GateUp::interleaved16) {
      std::memcpy(out + 2 * first, gate_up, 8 * width);
    } else {
      std::memcpy(out + first, gate_up, 4 * width);
      std::memcpy(out + n_ + first, gate_up + width, 4 * width);
    }
  }

  void activate(const float* gate_up, int64_t n, float* out) const {
    switch (activation_) {
      case Activation::silu: return silu_(gate_up, n, order_, nullptr, Kind::f32, out);
      case Activation::gelu: return gelu_(gate_up, n, order_, nullptr, Kind::f32, out);
      case Activation::clamped_swiglu: return clamped_(gate_up, n, order_, alpha_, limit_, out);
      case Activation::none: return;
      case Activation::relu2:
        for (int64_t i = 0; i < n; i++) {
          const float up = std::max(gate_up[i], 0.0f);
          out[i] = up * up;
        }
    }
  }

  const uint8_t* x_;
  uint8_t* out_;
  int64_t n_, experts_;
  Kind out_kind_;
  GateUp order_;
  Activation activation_;
  float alpha_, limit_;
  ExpertRuns* runs_;
  std::vector<LinearJob> jobs_;
  int64_t x_bytes_, out_bytes_, across_, linear_floats_, tile_bytes_;
  decltype(&generic::linear_tile) kernel_ = GALLEY_PICK_TILES(linear_tile);
  decltype(&generic::silu_mul_row) silu_ = GALLEY_PICK(silu_mul_row);
  decltype(&generic::gelu_mul_row) gelu_ = GALLEY_PICK(gelu_mul_row);
  decltype(&generic::clamped_swiglu_row) clamped_ = GALLEY_PICK(clamped_swiglu_row);
  decltype(&generic::store_columns) store_columns_ = GALLEY_PICK(store_columns);
};

class ExpertDown final : public Op {
 public:
  explicit ExpertDown(const Args& a)
      : x_(a.ptr<uint8_t>("x")), out_(a.ptr<float>("out")), n_(a.size("n")),
        weigh_(a.choice("weigh", 2, true)), runs_(expert_runs(a, "chosen")),
        down_(expert_jobs(a, "down", a.size("experts"), n_, a.size("k"), a.kind("x_kind"))),
        x_bytes_(down_[0].x_bytes), linear_floats_(scratch_floats(down_)) {}

  void plan(const Step& step, int threads) override { runs_->make_once(step, threads); }

  int64_t tiles(const Step&, int) const override { return down_[0].weight.panels(); }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    float* scratch = thread_scratch(linear_floats_ + kChunkRows * kTogether * kPanel);
    float* y = scratch + linear_floats_;
    for (int64_t panel = begin; panel < end; panel += kTogether) {
      const int64_t count = std::min(kTogether, end - panel), first = panel * kPanel;
      const int64_t width = std::min(count * kPanel, n_ - first);
      for (int32_t t = 0; t < step.tokens; t++) std::memset(out_ + t * n_ + first, 0, width * 4);
      for (const ExpertRun& piece : runs_->pieces) {
        kernel_(job_for(down_[piece.expert], x_ + piece.begin * x_bytes_, panel, y,
                        kTogether * kPanel),
                panel, count, 0, piece.end - piece.begin, reinterpret_cast<uint8_t*>(scratch));
        for (int64_t p = piece.begin; p < piece.end; p++) {
          add(y + (p - piece.begin) * kTogether * kPanel, weigh_ ? runs_->weight[p] : 1.0f, width,
              out_ + runs_->token[p] * n_ + first);
        }
      }
    }
  }

 private:
  static constexpr int64_t kTogether = 4;  // panels

  static void add(const float* y, float weight, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i++) out[i] += weight * y[i];
  }

  const uint8_t* x_;
  float* out_;
  int64_t n_;
  bool weigh_;
  ExpertRuns* runs_;
  std::vector<LinearJob> down_;
  int64_t x_bytes_, linear_floats_;
  decltype(&generic::linear_tile) kernel_ = GALLEY_PICK_TILES(linear_tile);
};

GALLEY_OP(expert_up, ExpertUp);
GALLEY_OP(expert_down, ExpertDown);

}  // namespace
}  // namespace galley
