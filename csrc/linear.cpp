// Op `linear`: out = x @ W.T (+ bias), W [n, k] packed (linear.h).
// Pointers: x (rows of x_kind), weight, out, bias? (f32 [n]).
// Ints: n, k, format, group, zero, scale, offset, table, rows, x_kind (WeightLayout::accepts),
//   out_kind (f32, bf16, q8, q16),
//   out_stride (elements; f32 and bf16 only, default the columns of out),
//   accumulate (out f32 += result), epilogue (0 none, 1 SiLU·mul of interleaved gate and up),
//   function? (of each number of the result: one of `elementwise` that has no parameters).
// Tile: one panel, or two where they share a group of out, for up to 240 rows.
//
// Op `linear_argmax`: in each row of the result, as float32, the index of the largest number, the lowest of equal
// ones; -1 where the largest is not finite or one is no number. As `linear`, but for int32 token_ids [rows]
// instead of out.
//
// Op `adapted_linear`: the same with what the adapters of the rows add: out = x @ W.T (+ bias) + B low.
// Pointers: low (of adapter_shrink), adapters, parts (int32 [count][4], as of adapter_expand; each
//   begins at a multiple of 16 outputs). Ints: count, first_input, first_output, inputs, max_rank,
//   low_kind, width, all_inputs, all_outputs, bf16. Column: adapter.
#include "linear.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "linear_kernel.h"
#include "sample.h"
#include "scratch.h"

namespace galley {
namespace {

[[noreturn]] void bad(const std::string& message) { throw std::invalid_argument(message); }

class Linear : public Op {
 public:
  explicit Linear(const Args& a) : Linear(a, a.ptr<uint8_t>("out")) {}

  int64_t tiles(const Step& step, int) const override {
    return chunks(row_count(step, rows_)) * across_;
  }

  // Few rows are bound by memory: each thread streams contiguous pieces of the weights, all of its
  // share if that is small.
  int64_t grain(const Step& step) const override {
    return row_count(step, rows_) <= kStreamRows
               ? std::max<int64_t>(1, kStreamBytes / (job_.weight.panel_bytes() * panels_per_tile_))
               : 1;
  }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    each_run(step, begin, end, 0, [this](int64_t panel, int64_t panels, int64_t row, int64_t end_row,
                                         uint8_t* scratch) {
      kernel_(job_, panel, panels, row, end_row, scratch);
    });
  }

 protected:
  Linear(const Args& a, uint8_t* out) : rows_(a.rows()), kernel_(GALLEY_PICK_TILES(linear_tile)) {
    LinearJob& j = job_;
    j.weight = weight_layout(a);
    j.data = a.ptr<uint8_t>("weight");
    j.float8 = is_float8(j.weight, j.data);
    j.x = a.ptr<uint8_t>("x");
    j.out = out;
    j.bias = a.ptr_or_null<float>("bias");
    j.x_kind = a.kind("x_kind");
    j.x_bytes = activation_bytes(j.x_kind, j.weight.k);
    j.accumulate = a.choice("accumulate", 2, false);
    j.epilogue = a.choice("epilogue", 3, Epilogue::none);
    j.function = function_of(a);
    j.out_kind = a.kind("out_kind");
    j.out_columns = is_gated(j.epilogue) ? j.weight.n / 2 : j.weight.n;
    const int64_t stride = a.i("out_stride", j.out_columns);
    check(stride);
    j.out_bytes = activation_bytes(j.out_kind, stride);
    panels_per_tile_ = is_gated(j.epilogue) && in_groups(j.out_kind) ? 2 : 1;
    across_ = (j.weight.panels() + panels_per_tile_ - 1) / panels_per_tile_;
  }

  // Calls run(panel, panels, first row, last row + 1, scratch) for tiles [begin, end): those of a chunk of rows
  // together. Behind the kernel's scratch memory there is room for so many more floats.
  template <class Run>
  void each_run(const Step& step, int64_t begin, int64_t end, int64_t more, const Run& run) const {
    const int64_t rows = row_count(step, rows_), chunk_count = chunks(rows);
    auto* scratch = reinterpret_cast<uint8_t*>(thread_scratch(scratch_floats() + more));
    for (int64_t tile = begin; tile < end;) {
      const int64_t chunk = tile / across_, last = std::min(end, (chunk + 1) * across_);
      const int64_t panel = tile % across_ * panels_per_tile_;
      const int64_t panels = std::min((last - tile) * panels_per_tile_,
                                      job_.weight.panels() - panel);
      run(panel, panels, rows * chunk / chunk_count, rows * (chunk + 1) / chunk_count, scratch);
      tile = last;
    }
  }
  // Of the kernel, whole cache lines.
  int64_t scratch_floats() const {
    return round_up(linear_scratch_bytes(job_.weight, job_.x_kind), 64) / static_cast<int64_t>(sizeof(float));
  }

  LinearJob job_;
  Dim rows_;
  decltype(&generic::linear_tile) kernel_;

 private:
  static constexpr int64_t kStreamRows = 8, kStreamBytes = 1 << 20;

  static int64_t chunks(int64_t rows) { return (rows + kChunkRows - 1) / kChunkRows; }

  const Elementwise* function_of(const Args& a) {
    if (a.i("function", -1) < 0) return nullptr;
    constexpr int kPlain = static_cast<int>(Function::xielu);
    function_.function = a.choice("function", kPlain, Function::gelu);
    return &function_;
  }

  void check(int64_t stride) const {
    const LinearJob& j = job_;
    if (!j.weight.accepts(j.x_kind, j.float8)) {
      bad("x_kind " + std::to_string(static_cast<int>(j.x_kind)) + " does not fit this weight");
    }
    if (j.out_kind == Kind::q8_row) bad("out_kind q8_row needs whole rows: use quantize");
    if (j.accumulate && j.out_kind != Kind::f32) bad("accumulate needs out_kind f32");
    if (stride < j.out_columns) bad("out_stride is less than the columns of out");
    if (stride != j.out_columns && in_groups(j.out_kind)) bad("rows of integers have no stride");
    if (is_gated(j.epilogue) && j.function) bad("gate and up have a function already");
    if (is_gated(j.epilogue) && j.weight.n % kPanel != 0) {
      bad("gate and up need n to be a multiple of 32, is " + std::to_string(j.weight.n));
    }
  }

  Elementwise function_{};
  int64_t panels_per_tile_, across_;
};

class LinearArgmax final : public Linear {
 public:
  explicit LinearArgmax(const Args& a) : Linear(a, nullptr), token_ids_(a.ptr<int32_t>("token_ids")) {
    if (job_.out_kind != Kind::f32 || job_.accumulate || is_gated(job_.epilogue)) {
      bad("linear_argmax compares float32 rows of its own");
    }
  }

  void plan(const Step& step, int threads) override {
    threads_ = threads;
    left_.store(tiles(step, threads), std::memory_order_relaxed);
    best_.assign(threads * row_count(step, rows_), none());
  }

  void run(const Step& step, int64_t begin, int64_t end, int thread) override {
    const int64_t all_rows = row_count(step, rows_);
    LaneScan* best = best_.data() + thread * all_rows;
    each_run(step, begin, end, kBlock + kMostRows * kGap,
             [&](int64_t panel, int64_t panels, int64_t row, int64_t end_row, uint8_t* scratch) {
      const int64_t width = std::clamp<int64_t>(kBlock / (kPanel * (end_row - row)), 1, kMostPanels);
      for (const int64_t stop = panel + panels; panel < stop; panel += width) {
        scan(panel, std::min(width, stop - panel), row, end_row, scratch, best);
      }
    });
    if (left_.fetch_sub(end - begin, std::memory_order_acq_rel) == end - begin) write(all_rows);
  }

 private:
  static LaneScan none() {
    LaneScan scan{};
    std::fill(std::begin(scan.best), std::end(scan.best), -std::numeric_limits<float>::infinity());
    std::fill(std::begin(scan.where), std::end(scan.where), -1);
    return scan;
  }
  // Numbers that are compared before they leave the L2 cache, panels of a row among them at most, and numbers
  // between two rows.
  static constexpr int64_t kBlock = 1 << 16, kMostPanels = 64, kGap = 16, kMostRows = kChunkRows;

  void scan(int64_t panel, int64_t panels, int64_t row, int64_t end_row, uint8_t* scratch, LaneScan* best) const {
    const float* block = reinterpret_cast<const float*>(scratch) + scratch_floats();
    const int64_t stride = panels * kPanel + kGap;
    LinearJob job = job_;
    job.out_bytes = stride * static_cast<int64_t>(sizeof(float));
    const int64_t before = row * stride + panel * kPanel;  // where the kernel would begin
    job.out = reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(block) - before * sizeof(float));
    kernel_(job, panel, panels, row, end_row, scratch);
    const int64_t columns = std::min(panels * kPanel, job.weight.n - panel * kPanel);
    for (; row < end_row; row++, block += stride) scan_more_(block, columns, panel * kPanel, best[row]);
  }

  static void join(RowScan& into, const RowScan& from) {
    into.has_nan = into.has_nan || from.has_nan;
    if (from.max < into.max || (from.max == into.max && from.argmax > into.argmax)) return;
    into.max = from.max, into.argmax = from.argmax;
  }

  void write(int64_t rows) {
    for (int64_t row = 0; row < rows; row++) {
      RowScan found = scan_end_(best_[row]);
      for (int thread = 1; thread < threads_; thread++) join(found, scan_end_(best_[thread * rows + row]));
      const bool broken = found.has_nan || !std::isfinite(found.max);
      token_ids_[row] = broken ? -1 : found.argmax;
    }
  }

  int32_t* token_ids_;
  decltype(&generic::scan_more) scan_more_ = GALLEY_PICK(scan_more);
  decltype(&generic::scan_end) scan_end_ = GALLEY_PICK(scan_end);
  int threads_ = 1;
  std::atomic<int64_t> left_{0};  // tiles
  std::vector<LaneScan> best_;    // [threads][rows] of the tiles that a thread has computed
};

class AdaptedLinear final : public Linear {
 public:
  explicit AdaptedLinear(const Args& a) : Linear(a), rows_(adapter_rows(a)), addend_(addend_of(a)) {
    job_.addend = &addend_;
  }

  void plan(const Step& step, int threads) override {
    rows_->make_once(step, threads);
    addend_.any_affine = std::any_of(rows_->groups.begin(), rows_->groups.end(), [&](const auto& g) {
      return addend_.table.has_affine(g.place);
    });
  }

 private:
  AdapterAddend addend_of(const Args& a) const {
    const int64_t inputs = a.size("inputs"), max_rank = a.size("max_rank");
    AdapterAddend addend{AdapterTable(a), rows_, adapter_parts(a, inputs, job_.weight.n), {},
                         {a.ptr<uint8_t>("low"), a.kind("low_kind"), inputs, max_rank},
                         a.i("first_input"), a.i("first_output")};
    addend.halves.resize(2 * job_.weight.panels());
    for (size_t i = 0; i < addend.parts.size(); i++) {
      const AdapterPart& part = addend.parts[i];
      for (int64_t p = 0; p < part.panels(); p++) {
        const int64_t column = part.column + p * part.step;
        if (column % kAdapterPanel) bad("a part begins within a panel");
        addend.halves[column / kAdapterPanel] = {static_cast<int32_t>(i), static_cast<int32_t>(p)};
      }
    }
    return addend;
  }

  AdapterRows* rows_;
  AdapterAddend addend_;
};

GALLEY_OP(linear, Linear);
GALLEY_OP(linear_argmax, LinearArgmax);
GALLEY_OP(adapted_linear, AdaptedLinear);

}  // namespace

// E4M3: sign, 4 bits of exponent with bias 7, 3 of fraction; all ones
// are NaN.
bool is_float8(const WeightLayout& w, const uint8_t* data) {
  if (w.format != Format::i8 || w.table != CodeTable::floats) return false;
  for (int code = 0; code < 256; code++) {
    float level;
    std::memcpy(&level, data + 4 * code, 4);
    const int magnitude = code & 127, exponent = magnitude >> 3, fraction = magnitude & 7;
    const float value = exponent ? std::ldexp(static_cast<float>(8 + fraction), exponent - 10)
                                 : std::ldexp(static_cast<float>(fraction), -9);
    if (magnitude == 127 ? level == level : level != (code < 128 ? value : -value)) return false;
  }
  return true;
}

WeightLayout weight_layout(const WeightNumbers& numbers) {
  constexpr int64_t kMost = int64_t{1} << 28;
  const auto [format, n, k, group, zero, scale, offset, table] = numbers;
  if (n <= 0 || k <= 0 || n > kMost || k > kMost) bad("a weight needs positive sizes");
  if (format < 0 || format >= kFormats) bad("no such weight format");
  WeightLayout w;
  w.format = static_cast<Format>(format);
  w.n = n;
  w.k = k;
  if (!w.quantised()) return w;
  if (scale < 0 || scale >= kScales) bad("no such number format of scales");
  if (offset < 0 || offset >= kOffsets) bad("no such kind of offset");
  if (table < 0 || table > 2) bad("no such kind of table");
  if (group < 0 || group > kMost || (group != 16 && group % kGroup != 0)) {
    bad("no kernel for groups of " + std::to_string(group));
  }
  if (zero < 0 || zero >= 1 << w.bits()) bad("zero is not a code");
  w.group = static_cast<int32_t>(group);
  w.zero = static_cast<int32_t>(zero);
  w.scale = static_cast<Scale>(scale);
  w.offset = static_cast<Offset>(offset);
  w.table = static_cast<CodeTable>(table);
  if (w.scale == Scale::u6 && (group != 32 || w.offset != Offset::min)) {
    bad("scales of 6 bits have groups of 32 and mins");
  }
  if (w.scale == Scale::i8 && (w.offset != Offset::zero || (group != 16 && group != 32))) {
    bad("scales of int8 have groups of 16 or 32 and no offsets");
  }
  if (w.scale == Scale::u4 && (group != 16 || w.offset != Offset::min)) {
    bad("scales of 4 bits have groups of 16 and mins");
  }
  if ((w.scale == Scale::s6 || w.scale == Scale::e4m3) &&
      (group != 16 || w.offset != Offset::zero)) {
    bad("signed scales of 6 bits, and of E4M3, have groups of 16 and no offsets");
  }
  if ((w.scale == Scale::e8m0 || w.scale == Scale::halves) && w.offset != Offset::zero) {
    bad("scales that are powers of two, or of half a panel, have no offsets");
  }
  if (w.format == Format::t2 && (k % 256 || group % 256 || w.offset != Offset::zero)) {
    bad("trits have rows and groups of multiples of 256, and one zero");
  }
  if (w.scale == Scale::nested &&
      (group == 16 || w.format != Format::i4 || w.table != CodeTable::floats || w.offset != Offset::zero)) {
    bad("nested scales are of 4-bit codes in a table of floats");
  }
  if (w.table != CodeTable::none && w.offset == Offset::zeros) bad("a table has no zeros");
  if (w.table == CodeTable::levels && (w.format != Format::i4 || w.offset != Offset::zero)) {
    bad("levels are of codes of 4 bits without offsets");
  }
  return w;
}

WeightLayout weight_layout(const Args& a) {
  auto choice = [&](const char* name, int count) {
    return static_cast<int64_t>(a.choice(name, count, 0));
  };
  return weight_layout(WeightNumbers{choice("format", kFormats), a.size("n"), a.size("k"),
                                     a.i("group", 0), a.i("zero", 0), choice("scale", kScales),
                                     choice("offset", kOffsets), choice("table", 3)});
}

}  // namespace galley
