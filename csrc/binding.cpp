// The Python module galley.kernels._native: pool, program, packing. Addresses come as integers;
// whoever passes one keeps the memory alive. Bad arguments raise ValueError.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "pack.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace galley {
namespace {

template <class T> const T* at(uint64_t address) {
  return reinterpret_cast<const T*>(static_cast<uintptr_t>(address));
}

uint8_t* mutable_at(uint64_t address) {
  return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(address));
}

// Sampling columns by name; one that is not named keeps the sampler's "off".
Sampling sampling_columns(const std::map<std::string, uint64_t>& columns) {
  Sampling s;
  for (const auto& [name, address] : columns) {
    if (name == "temperature") s.temperature = at<float>(address);
    else if (name == "top_p") s.top_p = at<float>(address);
    else if (name == "min_p") s.min_p = at<float>(address);
    else if (name == "top_k") s.top_k = at<int32_t>(address);
    else if (name == "presence") s.presence = at<float>(address);
    else if (name == "frequency") s.frequency = at<float>(address);
    else if (name == "repetition") s.repetition = at<float>(address);
    else if (name == "seed") s.seed = at<uint64_t>(address);
    else if (name == "num_logprobs") s.num_logprobs = at<int32_t>(address);
    else throw std::invalid_argument("no sampling column is named " + name);
  }
  return s;
}

nb::dict step_arrays(const Program& program) {
  const Step& s = program.step();
  nb::dict d;
  if (s.query_start == nullptr) return d;  // nothing was bound yet
  auto put = [&](const char* name, const auto* values, int32_t n) {
    nb::list list;
    for (int32_t i = 0; i < n; i++) list.append(static_cast<int64_t>(values[i]));
    d[name] = list;
  };
  put("slots", s.slots, s.rows);
  put("computed", s.computed, s.rows);
  put("query_start", s.query_start, s.rows + 1);
  put("token_ids", s.token_ids, s.tokens);
  put("positions", s.positions, s.tokens);
  put("token_row", s.token_row, s.tokens);
  put("logit_index", s.logit_index, s.logits);
  put("logit_row", s.logit_row, s.logits);
  put("logit_samples", s.logit_samples, s.logits);
  return d;
}

// A weight format as Python says it, with sizes and bounds checked.
WeightLayout layout(int format, int64_t n, int64_t k, int64_t group, int scale, bool has_min) {
  if (format < 0 || format > 3) throw std::invalid_argument("no such weight format");
  if (scale < 0 || scale > 1) throw std::invalid_argument("scale must be 0 (f16) or 1 (f32)");
  return weight_layout(static_cast<Format>(format), n, k, group, scale == 1, has_min);
}

void check_rows(const WeightLayout& w, int64_t first, int64_t last) {
  if (first < 0 || last > w.n || first > last) {
    throw std::invalid_argument("rows must lie in 0 .. " + std::to_string(w.n));
  }
}

void bind_weights(nb::module_& m) {
  nb::class_<WeightLayout>(m, "WeightLayout", "Sizes of a packed weight; see csrc/linear.h.")
      .def("__init__", [](WeightLayout* self, int format, int64_t n, int64_t k, int64_t group,
                          int scale, bool has_min) {
        new (self) WeightLayout(layout(format, n, k, group, scale, has_min));
      }, "format"_a, "n"_a, "k"_a, "group"_a = 0, "scale"_a = 0, "has_min"_a = false)
      .def_prop_ro("bytes", &WeightLayout::bytes)
      .def_prop_ro("panel_bytes", &WeightLayout::panel_bytes)
      .def_prop_ro("zero", &WeightLayout::zero, "The code that stands for the min, or for 0.");
  m.def("pack_dense", [](const WeightLayout& w, uint64_t values, bool bf16, int64_t stride,
                         uint64_t out) {
    nb::gil_scoped_release release;
    pack_dense(w, DenseSource{at<void>(values), bf16, stride}, mutable_at(out));
  }, "layout"_a, "values"_a, "bf16"_a, "stride"_a, "out"_a,
     "Pack float32 or bf16 values [n][stride] into `out` of layout.bytes.");
  m.def("pack_codes", [](const WeightLayout& w, uint64_t q, int64_t q_stride, int32_t zero,
                         uint64_t scale, uint64_t min, int64_t scale_stride, uint64_t out) {
    nb::gil_scoped_release release;
    pack_codes(w, CodeSource{at<uint8_t>(q), q_stride, zero, at<void>(scale), at<void>(min),
                             scale_stride}, mutable_at(out));
  }, "layout"_a, "q"_a, "q_stride"_a, "zero"_a, "scale"_a, "min"_a, "scale_stride"_a, "out"_a,
     "Pack uint8 codes [n][q_stride], scales and mins [n][scale_stride] (0 = no mins). ValueError "
     "where a code does not fit the format.");
  m.def("unpack_rows", [](const WeightLayout& w, uint64_t panels, int64_t first, int64_t last,
                          uint64_t out) {
    check_rows(w, first, last);
    nb::gil_scoped_release release;
    auto* to = reinterpret_cast<float*>(mutable_at(out));
    for (int64_t r = first; r < last; r++) {
      unpack_row(w, at<uint8_t>(panels), r, to + (r - first) * w.k);
    }
  }, "layout"_a, "panels"_a, "first"_a, "last"_a, "out"_a,
     "Rows first .. last - 1 as float32 [rows][k].");
  m.def("unpack_codes", [](const WeightLayout& w, uint64_t panels, uint64_t q, uint64_t scale,
                           uint64_t min) {
    if (!w.quantised()) throw std::invalid_argument("a dense weight has no codes");
    nb::gil_scoped_release release;
    const int64_t scales = w.group == 0 ? 1 : (w.k + w.group - 1) / w.group;
    const int64_t scale_bytes = scales * (w.scale_f32 ? 4 : 2);
    for (int64_t r = 0; r < w.n; r++) {
      unpack_codes(w, at<uint8_t>(panels), r, mutable_at(q) + r * w.k,
                   mutable_at(scale) + r * scale_bytes, mutable_at(min) + r * scale_bytes);
    }
  }, "layout"_a, "panels"_a, "q"_a, "scale"_a, "min"_a,
     "Codes [n][k], scales and mins [n][scales] as they were packed.");
}

void bind_program(nb::module_& m) {
  nb::class_<Pool>(m, "Pool", "Threads that run a program's ops; the caller is one of them.")
      .def(nb::init<int>(), "threads"_a)
      .def_prop_ro("threads", &Pool::threads);

  nb::class_<Program>(m, "Program", "A recorded list of ops; see csrc/program.h.")
      .def(nb::init<std::shared_ptr<Pool>>(), "pool"_a)
      .def("add", [](Program& p, const std::string& name, std::map<std::string, uint64_t> pointers,
                     std::map<std::string, int64_t> ints, std::map<std::string, double> floats,
                     int section) {
        Args args;
        args.pointers = std::move(pointers);
        args.ints = std::move(ints);
        args.floats = std::move(floats);
        p.add(name, args, section);
      }, "name"_a, "pointers"_a, "ints"_a, "floats"_a = std::map<std::string, double>{},
         "section"_a = 0, "Append an op. Names of arguments: docs/native_ops.md.")
      .def("bind", [](Program& p, int32_t num_slots, int32_t max_tokens, int32_t max_rows,
                      int32_t max_logits, uint64_t history, int64_t history_stride,
                      uint64_t num_tokens, uint64_t num_prompt, uint64_t num_computed,
                      uint64_t block_table, int64_t table_stride, int32_t block_size,
                      const std::map<std::string, uint64_t>& sampling) {
        Table t;
        t.num_slots = num_slots;
        t.history = at<int32_t>(history);
        t.history_stride = history_stride;
        t.num_tokens = at<int32_t>(num_tokens);
        t.num_prompt = at<int32_t>(num_prompt);
        t.num_computed = at<int32_t>(num_computed);
        t.block_table = at<int32_t>(block_table);
        t.table_stride = table_stride;
        t.block_size = block_size;
        t.sampling = sampling_columns(sampling);
        p.bind(t, Limits{max_tokens, max_rows, max_logits});
      }, nb::kw_only(), "num_slots"_a, "max_tokens"_a, "max_rows"_a, "max_logits"_a, "history"_a,
         "history_stride"_a, "num_tokens"_a, "num_prompt"_a, "num_computed"_a, "block_table"_a,
         "table_stride"_a, "block_size"_a, "sampling"_a = std::map<std::string, uint64_t>{},
         "Columns of the table (int32, by slot; strides in elements) and the most that a step "
         "may hold. Once, before the first run.")
      .def("set_logit_masks", [](Program& p, uint64_t mask, uint64_t bias_indptr,
                                 uint64_t bias_ids, uint64_t bias_values) {
        p.set_logit_masks(at<uint64_t>(mask), at<int32_t>(bias_indptr), at<int32_t>(bias_ids),
                          at<float>(bias_values));
      }, "mask"_a = 0, "bias_indptr"_a = 0, "bias_ids"_a = 0, "bias_values"_a = 0,
         "Columns by logit row for the runs to come; 0 = none.")
      .def("run", [](Program& p, uint64_t slots, uint64_t num_new, uint64_t num_logits,
                     uint64_t num_sampled, int32_t n, int first_section, int last_section) {
        nb::gil_scoped_release release;
        p.run(at<int32_t>(slots), at<int32_t>(num_new), at<int32_t>(num_logits),
              at<int32_t>(num_sampled), n, first_section, last_section);
      }, "slots"_a, "num_new"_a, "num_logits"_a, "num_sampled"_a, "n"_a, "first_section"_a = 0,
         "last_section"_a = 0,
         "Prepare the step from the table and run the ops of sections first .. last, inclusive.")
      .def("step", &step_arrays, "The last run's prepared columns, as lists.")
      .def("set_heartbeat", [](Program& p, uint64_t heartbeat) {
        p.set_heartbeat(reinterpret_cast<int64_t*>(static_cast<uintptr_t>(heartbeat)));
      }, "heartbeat"_a, "An int64 that is counted up after each op; 0 = none.")
      .def("profile", &Program::profile, "on"_a, "Start (from zero) or stop timing each op.")
      .def("timings", [](Program& p) {
        nb::list list;
        for (const OpTiming& t : p.timings()) {
          list.append(nb::make_tuple(t.name, t.section, t.runs, t.nanoseconds));
        }
        return list;
      }, "(name, section, runs, nanoseconds) per op, in order.");
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("isa", [] { return std::string(isa_name(isa())); },
        "Instruction set that new ops use: generic, avx2 or avx512 (GALLEY_CPU_ISA overrides).");
  m.def("ops", [] {
    std::vector<std::string> names;
    for (const auto& entry : op_registry()) names.push_back(entry.first);
    return names;
  }, "Names of the ops a program can hold.");

  m.def("activation_bytes", [](int kind, int64_t k) {
    if (kind < 0 || kind >= kKinds || k <= 0) throw std::invalid_argument("no such kind or size");
    return activation_bytes(static_cast<Kind>(kind), k);
  }, "kind"_a, "k"_a, "Bytes of one activation row of k values (csrc/linear.h).");

  bind_weights(m);
  bind_program(m);
}

}  // namespace galley
