// The Python module galley.kernels._native: pool, program, packing. Addresses are integers; the caller
// keeps the memory alive. Bad arguments raise ValueError.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "blocks.h"
#include "draft_index.h"
#include "draft_lengths.h"
#include "pack.h"
#include "program.h"
#include "rope.h"

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

// An op's arguments from a dict: int, float, str = the name of a column, (base, times) = a dimension.
Args op_arguments(Program& program, std::map<std::string, uint64_t> pointers, const nb::dict& values) {
  Args args(program.environment());
  args.pointers = std::move(pointers);
  for (auto [key, value] : values) {
    const std::string name = nb::cast<std::string>(key);
    const bool is_known = nb::isinstance<nb::float_>(value)
                              ? nb::try_cast(value, args.floats[name])
                          : nb::isinstance<nb::str>(value)
                              ? nb::try_cast(value, args.columns[name])
                          : nb::isinstance<nb::tuple>(value) ? nb::try_cast(value, args.dims[name])
                                                             : nb::try_cast(value, args.ints[name]);
    if (!is_known) throw std::invalid_argument("argument " + name + " has no type that ops know");
  }
  return args;
}

nb::dict step_arrays(const Program& program) {
  const Step& s = program.step();
  nb::dict d;
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
  put("logit_sampled", s.logit_sampled, s.logits);
  return d;
}

void check_rows(const WeightLayout& w, int64_t first, int64_t last) {
  if (first < 0 || last > w.n || first > last) {
    throw std::invalid_argument("rows must lie in 0 .. " + std::to_string(w.n));
  }
}

void bind_weights(nb::module_& m) {
  nb::class_<WeightLayout>(m, "WeightLayout", "Sizes of a packed weight; see csrc/linear.h.")
      .def("__init__", [](WeightLayout* self, int64_t format, int64_t n, int64_t k, int64_t group,
                          int64_t zero, int64_t scale, int64_t offset, int64_t table) {
        new (self) WeightLayout(weight_layout({format, n, k, group, zero, scale, offset, table}));
      }, "format"_a, "n"_a, "k"_a, "group"_a = 0, "zero"_a = 0, "scale"_a = 0, "offset"_a = 0,
         "table"_a = 0)
      .def_prop_ro("bytes", &WeightLayout::bytes)
      .def_prop_ro("panel_bytes", &WeightLayout::panel_bytes)
      .def_prop_ro("scales", &WeightLayout::scales, "Scales of a row.")
      .def_prop_ro("spans", &WeightLayout::spans, "Super scales of a row, if it has any.")
      .def_prop_ro("factors", &WeightLayout::factors, "Factors of nested scales of 16 rows.");
  m.def("pack_dense", [](const WeightLayout& w, uint64_t values, bool bf16, int64_t stride,
                         uint64_t out) {
    nb::gil_scoped_release release;
    pack_dense(w, DenseSource{at<void>(values), bf16, stride}, mutable_at(out));
  }, "layout"_a, "values"_a, "bf16"_a, "stride"_a, "out"_a,
     "Pack float32 or bf16 values [n][stride] into `out` of layout.bytes.");
  m.def("pack_codes", [](const WeightLayout& w, uint64_t q, uint64_t scale, uint64_t min,
                         uint64_t zeros, uint64_t super_scale, uint64_t super_min, uint64_t table,
                         uint64_t out) {
    nb::gil_scoped_release release;
    pack_codes(w, CodeSource{at<uint8_t>(q), at<void>(scale), at<void>(min), at<uint8_t>(zeros),
                             at<void>(super_scale), at<void>(super_min), at<void>(table)},
               mutable_at(out));
  }, "layout"_a, "q"_a, "scale"_a, "min"_a, "zeros"_a, "super_scale"_a, "super_min"_a, "table"_a,
     "out"_a,
     "Pack uint8 codes [n][k] with scales, mins and zeros [n][scales], super scales [n][spans] and a "
     "table; 0 for those that the layout does not have. ValueError where a number does not fit.");
  m.def("unpack_rows", [](const WeightLayout& w, uint64_t data, int64_t first, int64_t last,
                          uint64_t out) {
    check_rows(w, first, last);
    nb::gil_scoped_release release;
    auto* to = reinterpret_cast<float*>(mutable_at(out));
    for (int64_t r = first; r < last; r++) {
      unpack_row(w, at<uint8_t>(data), r, to + (r - first) * w.k);
    }
  }, "layout"_a, "data"_a, "first"_a, "last"_a, "out"_a,
     "Rows first .. last - 1 as float32 [rows][k].");
  m.def("unpack_codes", [](const WeightLayout& w, uint64_t data, uint64_t q, uint64_t scale,
                           uint64_t min, uint64_t zeros, uint64_t super_scale, uint64_t super_min,
                           uint64_t table) {
    if (!w.quantised()) throw std::invalid_argument("a dense weight has no codes");
    nb::gil_scoped_release release;
    unpack_codes(w, at<uint8_t>(data),
                 CodeTarget{mutable_at(q), mutable_at(scale), mutable_at(min), mutable_at(zeros),
                            mutable_at(super_scale), mutable_at(super_min), mutable_at(table)});
  }, "layout"_a, "data"_a, "q"_a, "scale"_a, "min"_a, "zeros"_a, "super_scale"_a, "super_min"_a,
     "table"_a, "The inverse of pack_codes, into arrays of the same shapes.");
}

// Strings of GGUF: each behind its length, uint64 and little-endian. Calls visit(text, length) for
// `count` of them, from `at` on, and returns the end of the last; -1 if it is beyond `size`.
template <class Visit>
int64_t each_string(const uint8_t* data, int64_t size, int64_t at, int64_t count, Visit visit) {
  for (int64_t i = 0; i < count; i++) {
    uint64_t length;
    if (at < 0 || at > size - 8) return -1;
    std::memcpy(&length, data + at, 8);
    if (length > static_cast<uint64_t>(size - at - 8)) return -1;
    visit(reinterpret_cast<const char*>(data + at + 8), static_cast<size_t>(length));
    at += 8 + static_cast<int64_t>(length);
  }
  return at;
}

nb::object decoded(const char* text, size_t length) {
  PyObject* made = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(length), nullptr);
  if (made == nullptr) throw nb::python_error();
  return nb::steal(made);
}

void bind_strings(nb::module_& m) {
  m.def("skip_strings", [](uint64_t data, int64_t size, int64_t start, int64_t count) {
    return each_string(at<uint8_t>(data), size, start, count, [](const char*, size_t) {});
  }, "data"_a, "size"_a, "start"_a, "count"_a,
     "End of `count` strings of a GGUF file; -1 if that is beyond `size`.");
  m.def("read_strings", [](uint64_t data, int64_t size, int64_t start, int64_t count) {
    nb::list list;
    each_string(at<uint8_t>(data), size, start, count,
                [&](const char* text, size_t length) { list.append(decoded(text, length)); });
    return list;
  }, "data"_a, "size"_a, "start"_a, "count"_a, "The strings. UnicodeDecodeError if one is not UTF-8.");
  m.def("read_pairs", [](uint64_t data, int64_t size, int64_t start, int64_t count) {
    nb::list list;
    each_string(at<uint8_t>(data), size, start, count, [&](const char* text, size_t length) {
      const void* found = length > 0 ? std::memchr(text + 1, ' ', length - 1) : nullptr;
      if (found == nullptr) throw nb::value_error(std::string(text, length).c_str());
      const size_t left = static_cast<const char*>(found) - text;
      list.append(nb::make_tuple(decoded(text, left),
                                 decoded(text + left + 1, length - left - 1)));
    });
    return list;
  }, "data"_a, "size"_a, "start"_a, "count"_a,
     "The strings, each cut at its first space behind its first character. UnicodeDecodeError if "
     "one is not UTF-8, ValueError with the string if one has no such space.");
}

void bind_blocks(nb::module_& m) {
  m.def("block_types", [] {
    nb::dict types;
    for (const BlockType& t : block_types()) {
      const WeightLayout& w = t.format;
      types[t.name] = nb::make_tuple(t.values, t.bytes, w.format, w.group, w.zero, w.scale, w.offset,
                                     w.table);
    }
    return types;
  }, "Types of blocks in GGUF files (csrc/blocks.h): values and bytes of a block, format, group, zero, "
     "scale, offset, table.");
  m.def("pack_blocks", [](const std::string& type, uint64_t rows, int64_t n, int64_t k,
                          uint64_t out) {
    nb::gil_scoped_release release;
    pack_blocks(block_type(type), at<uint64_t>(rows), n, k, mutable_at(out));
  }, "type"_a, "rows"_a, "n"_a, "k"_a, "out"_a,
     "Pack rows of k values, whose addresses are uint64 [n], as the type's format.");
  m.def("decode_blocks", [](const std::string& type, uint64_t rows, int64_t n, int64_t k, uint64_t q,
                            uint64_t scale, uint64_t min, uint64_t, uint64_t super_scale,
                            uint64_t super_min, uint64_t table) {
    nb::gil_scoped_release release;
    decode_blocks(block_type(type), at<uint64_t>(rows), n, k,
                  CodeTarget{mutable_at(q), mutable_at(scale), mutable_at(min), nullptr,
                             mutable_at(super_scale), mutable_at(super_min), mutable_at(table)});
  }, "type"_a, "rows"_a, "n"_a, "k"_a, "q"_a, "scale"_a, "min"_a, "zeros"_a, "super_scale"_a,
     "super_min"_a, "table"_a, "The same rows' codes and scales, as unpack_codes writes them.");
}

void bind_program(nb::module_& m) {
  nb::class_<Pool>(m, "Pool", "Threads that run a program's ops; the caller is one of them.")
      .def(nb::init<int>(), "threads"_a)
      .def_prop_ro("threads", &Pool::threads);

  nb::class_<Program>(m, "Program", "A recorded list of ops; see csrc/program.h.")
      .def(nb::init<std::shared_ptr<Pool>, int32_t, const std::map<std::string, int64_t>&>(),
           "pool"_a, "num_slots"_a, "limits"_a,
           "`limits`: the most that a step may hold of each dimension (tokens, sequences, logits ...).")
      .def("bind", [](Program& p, const std::string& name, const std::string& dtype,
                      uint64_t address, int64_t stride) {
        p.bind(name, dtype, at<void>(address), stride);
      }, "name"_a, "dtype"_a, "address"_a, "stride"_a = 1,
         "Bind a column: dtype as in numpy (i4, f4 ...), stride in elements from row to row.")
      .def("unbind", &Program::unbind, "name"_a, "A column that ops may do without is absent again.")
      .def("columns", [](const Program& p) {
        std::map<std::string, bool> columns;
        for (const auto& [name, column] : p.environment().columns.all()) {
          columns[name] = column.is_read;
        }
        return columns;
      }, "Known columns by name, and whether an op reads them.")
      .def("add", [](Program& p, const std::string& name, std::map<std::string, uint64_t> pointers,
                     const nb::dict& values) {
        return p.add(name, op_arguments(p, std::move(pointers), values));
      }, "name"_a, "pointers"_a, "values"_a = nb::dict(),
         "Append an op and return its number. Names of arguments: docs/native_ops.md. A value is an "
         "int, a float, a str (the column to read) or a tuple (dimension, times).")
      .def("resize", &Program::resize, "dimension"_a, "size"_a,
           "Set the size of a dimension that is not made from the plan, for the runs to come.")
      .def("run", [](Program& p, uint64_t slots, uint64_t num_new, uint64_t num_logits,
                     uint64_t num_sampled, int32_t n, int first, std::optional<int> last, int then) {
        nb::gil_scoped_release release;
        p.run({at<int32_t>(slots), at<int32_t>(num_new), at<int32_t>(num_logits),
               at<int32_t>(num_sampled), n}, first, last ? *last : p.size(), then);
      }, "slots"_a, "num_new"_a, "num_logits"_a, "num_sampled"_a, "n"_a, "first"_a = 0,
         "last"_a = nb::none(), "then"_a = -1,
         "Prepare the step from the table and run ops first .. last - 1, and op `then` if it is not -1.")
      .def("sizes", [](const Program& p) { return p.environment().dimensions.by_name(); },
           "Sizes of the dimensions in the last run.")
      .def("step", &step_arrays, "The last run's prepared columns, as lists.")
      .def("set_heartbeat", [](Program& p, uint64_t counter) {
        p.set_heartbeat(reinterpret_cast<int64_t*>(static_cast<uintptr_t>(counter)));
      }, "counter"_a, "Address of an int64 that is incremented after each op; 0 = none.")
      .def("profile", &Program::profile, "on"_a, "Start (from zero) or stop timing each op.")
      .def("timings", [](Program& p) {
        nb::list list;
        for (const OpTiming& t : p.timings()) {
          list.append(nb::make_tuple(t.name, t.runs, t.nanoseconds));
        }
        return list;
      }, "(name, runs, nanoseconds) per op, in order.");
}

void bind_enums(nb::module_& m) {
  nb::enum_<Kind>(m, "Kind", nb::is_arithmetic(), "Number format of an activation row.")
      .value("f32", Kind::f32)
      .value("bf16", Kind::bf16)
      .value("q8", Kind::q8, "int8, a scale per 32")
      .value("q8_row", Kind::q8_row, "int8, a scale per row")
      .value("q16", Kind::q16, "int16 as two planes of int8, a scale per 32");
  nb::enum_<RopeStyle>(m, "RopeStyle", nb::is_arithmetic(), "Which elements of a head are rotated.")
      .value("halves", RopeStyle::halves, "i with i + rot_dim / 2")
      .value("interleaved", RopeStyle::interleaved, "2i with 2i + 1");
  nb::enum_<Epilogue>(m, "Epilogue", nb::is_arithmetic(), "Op that a linear op applies as it stores.")
      .value("none", Epilogue::none)
      .value("silu_mul", Epilogue::silu_mul, "of interleaved gate and up")
      .value("gelu_mul", Epilogue::gelu_mul, "likewise, GELU in its tanh form");
  nb::enum_<Format>(m, "Format", nb::is_arithmetic(), "Number format of a weight (csrc/linear.h).")
      .value("f32", Format::f32)
      .value("bf16", Format::bf16)
      .value("i4", Format::i4)
      .value("i5", Format::i5)
      .value("i6", Format::i6)
      .value("i8", Format::i8)
      .value("i2", Format::i2)
      .value("i3", Format::i3)
      .value("i1", Format::i1)
      .value("t2", Format::t2, "0 .. 2, five a byte");
  nb::enum_<Scale>(m, "Scale", nb::is_arithmetic(), "Number format of a weight's scales and mins.")
      .value("f16", Scale::f16)
      .value("f32", Scale::f32)
      .value("bf16", Scale::bf16)
      .value("u6", Scale::u6, "times an f16 per 256 values")
      .value("i8", Scale::i8, "times an f16 per 256 values")
      .value("u4", Scale::u4, "times an f16 per 256 values")
      .value("s6", Scale::s6, "times an f16 per 256 values")
      .value("e8m0", Scale::e8m0, "2^(e - 128)")
      .value("e4m3", Scale::e4m3, "times an f32 per output")
      .value("halves", Scale::halves, "an f32 for 16 outputs")
      .value("nested", Scale::nested, "a level times an f32 per 256 scales, plus an f32");
  nb::enum_<Offset>(m, "Offset", nb::is_arithmetic(), "Offset of a weight's codes.")
      .value("zero", Offset::zero, "one zero")
      .value("min", Offset::min, "besides, a min per scale")
      .value("zeros", Offset::zeros, "a whole zero per scale")
      .value("fractions", Offset::fractions, "a fractional zero per scale");
  nb::enum_<CodeTable>(m, "CodeTable", nb::is_arithmetic(), "Levels of a weight's codes.")
      .value("none", CodeTable::none, "affine")
      .value("levels", CodeTable::levels, "int8")
      .value("floats", CodeTable::floats, "float32");
}

void bind_drafts(nb::module_& m) {
  nb::class_<DraftIndex>(m, "DraftIndex", "Places where last tokens occurred before; see csrc/draft_index.h.")
      .def("__init__", [](DraftIndex* self, int32_t num_slots, int32_t min_match, int32_t max_match,
                          int32_t candidates, bool votes, double spec_factor, double min_probability,
                          int64_t corpus_tokens, int64_t max_texts) {
        new (self) DraftIndex(num_slots, {min_match, max_match, candidates, votes, spec_factor,
                                          min_probability}, corpus_tokens, max_texts);
      }, "num_slots"_a, "min_match"_a, "max_match"_a, "candidates"_a, "votes"_a = false,
         "spec_factor"_a = 0.0, "min_probability"_a = 0.0, "corpus_tokens"_a = 0, "max_texts"_a = 0)
      .def("propose", [](DraftIndex& self, uint64_t tokens, int64_t stride, uint64_t lengths,
                         uint64_t handles, uint64_t scopes, uint64_t slots, int64_t n, uint64_t most,
                         int32_t width, uint64_t counts, uint64_t matches, uint64_t ids) {
        auto out = [](uint64_t address) { return reinterpret_cast<int32_t*>(mutable_at(address)); };
        self.propose(at<int32_t>(tokens), stride, at<int32_t>(lengths), at<int64_t>(handles),
                     at<int64_t>(scopes), at<int64_t>(slots), n, at<int32_t>(most), width,
                     out(counts), out(matches), out(ids));
      }, "tokens"_a, "stride"_a, "lengths"_a, "handles"_a, "scopes"_a, "slots"_a, "n"_a, "most"_a,
         "width"_a, "counts"_a, "matches"_a, "ids"_a, "Drafts of n slots.")
      .def("add", [](DraftIndex& self, uint64_t text, int64_t length, int64_t scope) {
        self.add(at<int32_t>(text), length, scope);
      }, "text"_a, "length"_a, "scope"_a, "Add int32 tokens to the corpus.")
      .def("clear", &DraftIndex::clear, "slot"_a, "Forget the text of a slot.")
      .def("clear_corpus", &DraftIndex::clear_corpus, "Forget all texts that were added.");
  nb::class_<StepCosts>(m, "StepCosts", "Seconds of steps by their tokens; see csrc/draft_lengths.h.")
      .def(nb::init<int64_t>(), "most"_a)
      .def("record", &StepCosts::record, "tokens"_a, "seconds"_a, "drafts"_a, "A step took so long.")
      .def("age", &StepCosts::age, "tokens"_a, "Steps since one was measured.")
      .def("known", &StepCosts::known, "tokens"_a, "Seconds as measured, or 0.")
      .def("curve", &StepCosts::curve, "tokens"_a, "more"_a, "Seconds of tokens ... tokens + more.");
  nb::class_<DraftLengths>(m, "DraftLengths", "How many drafts pay; see csrc/draft_lengths.h.")
      .def(nb::init<int64_t, int64_t, int64_t, int64_t>(), "num_slots"_a, "width"_a, "num_levels"_a,
           "most"_a)
      .def("clear", &DraftLengths::clear, "slot"_a, "A sequence leaves its slot.")
      .def("record", &DraftLengths::record, "tokens"_a, "seconds"_a, "drafts"_a,
           "A step took so long.")
      .def("observe", [](DraftLengths& self, uint64_t tokens, int64_t stride, uint64_t lengths,
                         uint64_t slots, int64_t n) {
        self.observe(at<int32_t>(tokens), stride, at<int32_t>(lengths), at<int64_t>(slots), n);
      }, "tokens"_a, "stride"_a, "lengths"_a, "slots"_a, "n"_a, "Compare proposals with tokens.")
      .def("choose", [](DraftLengths& self, uint64_t lengths, uint64_t slots, int64_t n, uint64_t counts,
                        uint64_t ids, uint64_t levels, int64_t num_rows, double seconds, uint64_t chosen) {
        const ProposedDrafts drafts{at<int32_t>(counts), at<int32_t>(ids), at<int32_t>(levels)};
        return self.choose(at<int32_t>(lengths), at<int64_t>(slots), n, drafts, num_rows, seconds,
                           reinterpret_cast<int32_t*>(mutable_at(chosen)));
      }, "lengths"_a, "slots"_a, "n"_a, "counts"_a, "ids"_a, "levels"_a, "num_rows"_a, "seconds"_a,
         "chosen"_a, "Drafts that n slots take.");
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("isa", [] { return std::string(isa_name(isa())); },
        "Instruction set that new ops use: generic, avx2, avx512 or amx (GALLEY_CPU_ISA overrides).");
  m.def("ops", [] {
    std::vector<std::string> names;
    for (const auto& entry : op_registry()) names.push_back(entry.first);
    return names;
  }, "Names of the ops a program can hold.");

  m.def("activation_bytes", [](int kind, int64_t k) {
    if (kind < 0 || kind >= kKinds || k <= 0) throw std::invalid_argument("no such kind or size");
    return activation_bytes(static_cast<Kind>(kind), k);
  }, "kind"_a, "k"_a, "Bytes of one activation row of k values (csrc/linear.h).");

  bind_enums(m);
  bind_weights(m);
  bind_blocks(m);
  bind_strings(m);
  bind_program(m);
  bind_drafts(m);
}

}  // namespace galley
