// Kernels that batch-invariance forbids, for benchmarks/invariance.py to measure: built into a module of its
// own (-DGALLEY_BENCHMARK_VARIANTS=ON), never into the one that serves.
//
//   linear_split     x @ W.T with K cut into parts that threads compute side by side, to be summed
//   sum_parts        the sum
//   kv_chunk         no work: attention cuts the KV cache into chunks of `size` tokens from now on
#include <algorithm>
#include <cstring>

#include "attention.h"
#include "linear_variants.h"
#include "scratch.h"

namespace galley {

int64_t kChunk = 512;

namespace {

// Pointers: x0, weight0, x1, weight1 … (K cut into as many parts, each packed by itself), out (f32
// [parts][rows of a step][n]). Ints: parts, n, k (of a part), weight arguments, x_kind. Rows: tokens.
class LinearSplit final : public Op {
 public:
  explicit LinearSplit(const Args& a) : rows_(a.rows()), kernel_(GALLEY_PICK_TILES(linear_tile)) {
    for (int64_t p = 0; p < a.size("parts"); p++) {
      LinearJob j;
      j.weight = weight_layout(a);
      j.data = a.ptr<uint8_t>("weight" + std::to_string(p));
      j.x = a.ptr<uint8_t>("x" + std::to_string(p));
      j.out = a.ptr<uint8_t>("out");
      j.x_kind = a.kind("x_kind");
      j.x_bytes = activation_bytes(j.x_kind, j.weight.k);
      j.out_columns = j.weight.n;
      j.out_bytes = j.weight.n * static_cast<int64_t>(sizeof(float));
      jobs_.push_back(j);
    }
  }

  int64_t tiles(const Step& step, int) const override { return across(step) * parts(); }
  // A thread's whole range: it reads its part of K from end to end.
  int64_t grain(const Step&) const override { return int64_t{1} << 20; }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t rows = row_count(step, rows_), panels = jobs_[0].weight.panels();
    auto* scratch = reinterpret_cast<uint8_t*>(thread_scratch(
        linear_scratch_bytes(jobs_[0].weight, jobs_[0].x_kind) / static_cast<int64_t>(sizeof(float))));
    for (int64_t tile = begin; tile < end;) {
      const int64_t part = tile / across(step), chunk = tile % across(step) / panels;
      const int64_t panel = tile % panels, count = std::min(end - tile, panels - panel);
      LinearJob job = jobs_[part];
      job.out += part * rows * job.out_bytes;
      const int64_t chunks = this->chunks(rows);
      kernel_(job, panel, count, rows * chunk / chunks, rows * (chunk + 1) / chunks, scratch);
      tile += count;
    }
  }

 private:
  static int64_t chunks(int64_t rows) { return (rows + kChunkRows - 1) / kChunkRows; }
  int64_t across(const Step& step) const {
    return chunks(row_count(step, rows_)) * jobs_[0].weight.panels();
  }
  int64_t parts() const { return static_cast<int64_t>(jobs_.size()); }

  std::vector<LinearJob> jobs_;
  Dim rows_;
  decltype(&generic::linear_tile) kernel_;
};

// Pointers: x (f32 [parts][rows of a step][n]), out (bf16 [rows][n]). Ints: parts, n. Rows: tokens.
class SumParts final : public Op {
 public:
  explicit SumParts(const Args& a)
      : x_(a.ptr<float>("x")), out_(a.ptr<uint16_t>("out")), parts_(a.size("parts")),
        n_(a.size("n")), rows_(a.rows()) {}

  int64_t tiles(const Step& step, int) const override { return row_count(step, rows_); }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    const int64_t all = row_count(step, rows_) * n_;
    for (int64_t i = begin * n_; i < end * n_; i++) {
      float sum = x_[i];
      for (int64_t p = 1; p < parts_; p++) sum += x_[p * all + i];
      uint32_t bits;
      std::memcpy(&bits, &sum, sizeof bits);
      out_[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
  }

 private:
  const float* x_;
  uint16_t* out_;
  int64_t parts_, n_;
  Dim rows_;
};

class KvChunk final : public Op {
 public:
  explicit KvChunk(const Args& a) { kChunk = a.size("size"); }
  int64_t tiles(const Step&, int) const override { return 0; }
  void run(const Step&, int64_t, int64_t, int) override {}
};

GALLEY_OP(linear_split, LinearSplit);
GALLEY_OP(sum_parts, SumParts);
GALLEY_OP(kv_chunk, KvChunk);

}  // namespace
}  // namespace galley
