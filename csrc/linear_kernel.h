// Definitions for linear_variants.h; compiled once per instruction set (variants.h).
//
//   for a panel of 32 columns
//     for a block of rows (12, or fewer where registers are fewer or accumulators more)
//       all of K in order, one accumulator per output: the order of additions depends on nothing
//       else, so a row's bits are the same in every batch
//     epilogue: bias, residual, gate·up, number format
//
// If K is long and there are several row blocks, K is cut into pieces. A few panels and all rows
// process a piece before the next, so that the data they read again stays in the L2 cache; the
// accumulators are kept in memory in between, which changes none of their bits.
//
// The weights of the next panel are prefetched while this one is used: the first two row blocks
// bring in half of it each; a lone block, bound by memory, prefetches a little ahead of itself.
#pragma once
#include "linear_codes.h"
#include "linear_epilogue.h"
#include "linear_spans.h"
#include "linear_variants.h"

namespace galley {
namespace GALLEY_VARIANT {

// Rows whose accumulators fit the registers, and how many of a panel's halves go side by side.
#if GALLEY_PARTS == 1
constexpr int kWordRows = 12, kWide = 2;
template <int kPlanes> constexpr int kGroupRows = kPlanes == 1 ? 6 : 4;
#else
constexpr int kWordRows = 4, kWide = 1;
template <int kPlanes> constexpr int kGroupRows = 2;
#endif
constexpr int64_t kAhead = 4096;  // bytes that a lone row block prefetches ahead
constexpr int64_t kWordBytes = kHalves * 64;  // of a panel, for one word of K
// K is cut where a panel is longer than kUncut words, 384 KB: together with the rows it no longer
// fits the L2 cache. A piece of 240 rows takes 480 KB, one of a panel 64 KB.
constexpr int64_t kUncut = 3072, kPiece = 512;

// How the blocks of codes of a panel follow each other.
struct BlockLayout {
  HeaderReader reader;
  int64_t header_bytes, block_bytes;  // a header, and the codes of a block
  int64_t span;                       // blocks that share a header
  int64_t entry_step;                 // from block to block of a span
  int32_t zero;                       // the code of level 0, of codes as bytes

  explicit BlockLayout(const WeightLayout& w)
      : reader(w), header_bytes(w.header_bytes()), block_bytes(w.block_bytes()),
        span(w.span_blocks()), entry_step(w.two_level() ? w.parts() : 0),
        zero(w.table == CodeTable::levels ? 128 : w.zero) {}
  static BlockLayout repacked(const WeightLayout& w) {
    BlockLayout layout(w);
    layout.reader = HeaderReader::repacked(w);
    layout.header_bytes = w.repacked_header_bytes(), layout.block_bytes = kGroup * kPanel;
    layout.span = 1, layout.entry_step = 0;
    return layout;
  }
};

// The result of one block of rows: y[rows][32].
struct Block {
  const LinearJob* job;
  const BlockLayout* layout;  // of codes in groups, else null
  const uint8_t* panel;       // packed weights
  uint8_t* scratch;           // i4: the panel's codes as bytes, written by the first block of rows
  bool keeps;                 // writes a repacked panel to scratch
  const uint8_t* x;           // the first row
  Prefetch prefetch;
  float* y;                   // sums; what is computed so far where `word` > 0
  int64_t word, end;          // words of K, [word, end) of them: all but where K is cut
};

#define GALLEY_ROWS _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)
#define GALLEY_WIDE _Pragma("GCC unroll 2") for (int c = 0; c < kWide; c++)

// Words of K: what 4 bytes of a row do with 4 bytes of each column.
struct FloatWord {
  using Acc = Float;
  static constexpr int kValues = 1;
  static GALLEY_INLINE Float step(const Float& acc, const Int& w, int32_t x) {
    return fma(as_float(all(x)), as_float(w), acc);
  }
};
struct Bf16Word {
  using Acc = Float;
  static constexpr int kValues = 2;
  static GALLEY_INLINE Float step(const Float& acc, const Int& w, int32_t x) {
    return dot_bf16(acc, all(x), w);
  }
};
struct CodeWord {
  using Acc = Int;
  static constexpr int kValues = 4;
  static GALLEY_INLINE Int step(const Int& acc, const Int& w, int32_t x) {
    return dot<true>(acc, w, x);
  }
};

// acc[row][half] += the row's words times the panel's, for R rows and kWide halves.
template <class Word, int R>
GALLEY_INLINE void walk_words(const uint8_t* w, int64_t words_of_k, const uint8_t* x,
                              int64_t x_bytes, Prefetch prefetch,
                              typename Word::Acc (&acc)[R][kWide]) {
  RowPointers<R> rows(x, x_bytes);
  for (const uint8_t* end = x + 4 * words_of_k; rows[0] < end; rows.advance(4)) {
    Int column[kWide];
    GALLEY_WIDE column[c] = words(w + c * 64);
    advance(prefetch);
    GALLEY_ROWS {
      const int32_t value = word_at(rows[r]);
      GALLEY_WIDE acc[r][c] = Word::step(acc[r][c], column[c], value);
    }
    w += kHalves * 64;
  }
}

// f32 and bf16.
template <class Word, int R> struct DenseRows {
  static void run(const Block& b) {
    const int64_t k = b.job->weight.k, x_bytes = b.job->x_bytes;
    const int64_t whole = k / Word::kValues;
    for (int half = 0; half < kHalves; half += kWide) {
      Float acc[R][kWide];
      GALLEY_ROWS GALLEY_WIDE {
        acc[r][c] = b.word ? load(b.y + r * kPanel + (half + c) * kLanes) : zero();
      }
      walk_words<Word, R>(b.panel + b.word * kWordBytes + half * 64, b.end - b.word,
                          b.x + 4 * b.word, x_bytes, b.prefetch, acc);
      if (b.end == whole && k % Word::kValues) {  // an odd bf16: the missing one is 0
        const uint8_t* w = b.panel + whole * kHalves * 64 + half * 64;
        GALLEY_ROWS {
          uint16_t last;
          memcpy(&last, b.x + r * x_bytes + 4 * whole, 2);
          GALLEY_WIDE acc[r][c] = Word::step(acc[r][c], words(w + c * 64), last);
        }
      }
      GALLEY_ROWS GALLEY_WIDE store(b.y + r * kPanel + (half + c) * kLanes, acc[r][c]);
    }
  }
};
template <int R> using FloatRows = DenseRows<FloatWord, R>;
template <int R> using Bf16Rows = DenseRows<Bf16Word, R>;

// int8 with one scale per output, on rows with one scale.
template <int R> struct PerRow {
  static void run(const Block& b) {
    const int64_t padded = b.job->weight.blocks() * kGroup, x_bytes = b.job->x_bytes;
    const uint8_t* codes = b.panel + kPanel * 4 + b.word * kWordBytes;
    int32_t* sums = reinterpret_cast<int32_t*>(b.y);
    for (int half = 0; half < kHalves; half += kWide) {
      Int acc[R][kWide];
      GALLEY_ROWS GALLEY_WIDE {
        acc[r][c] = b.word ? load(sums + r * kPanel + (half + c) * kLanes)
                           : excess(b.x + r * x_bytes + padded);
      }
      walk_words<CodeWord, R>(codes + half * 64, b.end - b.word, b.x + 4 * b.word, x_bytes,
                              b.prefetch, acc);
      if (b.end < padded / 4) {
        GALLEY_ROWS GALLEY_WIDE store(sums + r * kPanel + (half + c) * kLanes, acc[r][c]);
        continue;
      }
      GALLEY_ROWS GALLEY_WIDE {
        store(b.y + r * kPanel + (half + c) * kLanes,
              scaled(acc[r][c], b.panel, half + c, b.x + r * x_bytes + padded));
      }
    }
  }
};

// How the codes of a block of 32 k are read. Calls use(j, column words) for the steps j of four k in
// [first, last).
//
// Bytes: one code a byte, of an i8 panel or of scratch memory.
template <bool kScratch> struct Bytes {
  static constexpr bool kFromScratch = kScratch;
  template <class Use>
  static GALLEY_INLINE void each(const uint8_t* codes, uint8_t*, int first, int last,
                                 Prefetch& prefetch, const Use& use) {
#pragma GCC unroll 8
    for (int j = first; j < last; j++) {
      Int column[kWide];
      GALLEY_WIDE column[c] = words(codes + (j * kHalves + c) * 64);
      advance(prefetch);
      use(j, column);
    }
  }
};
// Nibbles of an i4 panel, unpacked in registers and, for the row blocks to come, into scratch.
template <bool kKeep> struct Nibbles {
  static constexpr bool kFromScratch = false;
  template <class Use>
  static GALLEY_INLINE void each(const uint8_t* codes, uint8_t* scratch, int, int,
                                 Prefetch& prefetch, const Use& use) {
    const Int low = all(0x0f0f0f0f);
    int32_t* bytes = reinterpret_cast<int32_t*>(scratch);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      Int first[kWide], second[kWide];
      GALLEY_WIDE {
        const Int both = words(codes + (j * kHalves + c) * 64);
        first[c] = both & low;
        second[c] = shift_right<4>(both) & low;
        if (kKeep) store(bytes + (j * kHalves + c) * kLanes, first[c]);
        if (kKeep) store(bytes + ((j + 4) * kHalves + c) * kLanes, second[c]);
      }
      advance(prefetch);
      use(j, first);
      use(j + 4, second);
    }
  }
};

GALLEY_INLINE void prefetch_lines(const uint8_t* at, int64_t bytes) {
  for (const uint8_t* end = at + bytes; at < end; at += 64) __builtin_prefetch(at, 0, 2);
}

// Codes with a scale per 32 / kSubs values of K or more, on rows with a scale per 32. Per part, in
// order: y = fma(dot, w scale * x scale, y), then with mins y = fma(w min, x scale * sum of x, y).
// The dot product of x and code - zero is exact: of rows in two planes it is that of the high bytes
// times 256 plus that of the low ones, at most 32 * 255 * 32639 < 2^28.
//
// Without kSpans every block has a header, and level 0 is 128 for kSigned, else 8, or 0 with mins (or
// kSigned and what the layout says, which costs a little more). With kSpans neither is so, and where
// codes are no nibbles a block is expanded to scratch first. The first of several row blocks keeps
// what it expands, as a panel of plain blocks for the others.
template <class Codes, bool kSigned, int kSubs, Offset kOffset, int kPlanes, bool kSpans>
struct Grouped {
  static constexpr bool kMin = kOffset == Offset::min, kZeros = kOffset == Offset::zeros;
  static constexpr bool kExpands = kSpans && Codes::kFromScratch;
  // The part that the dot product has subtracted already, times the sum of x.
  static constexpr int32_t kBase = kSigned ? kSubtracted : 0;

  template <int R> struct Rows {
    static void run(const Block& b) {
      const WeightLayout& w = b.job->weight;
      const BlockLayout& layout = *b.layout;
      const HeaderReader reader = layout.reader;
      const int64_t blocks = w.blocks(), stride = b.job->x_bytes;
      const int64_t header_bytes = layout.header_bytes;
      const int64_t block_bytes = layout.block_bytes + (kSpans ? 0 : header_bytes);
      const int64_t code_bytes = Codes::kFromScratch && !kSpans ? kGroup * kPanel : block_bytes;
      const uint8_t* levels = w.table == CodeTable::levels ? b.job->data : nullptr;
      const int64_t kept_header = w.repacked_header_bytes();
      for (int half = 0; half < kHalves; half += kWide) {
        Prefetch prefetch = b.prefetch, none{};
        const uint8_t* header = b.panel;
        const uint8_t* codes =
            (Codes::kFromScratch && !kSpans ? b.scratch : b.panel + header_bytes) + half * 64;
        uint8_t* scratch = b.scratch + half * 64 + (kExpands && b.keeps ? kept_header : 0);
        const uint8_t* side = b.x + blocks * kGroup * kPlanes;
        RowPointers<R> q(b.x, stride), scales(side, stride), starts(side + 4 * blocks, stride);
        RowPointers<R> sums(side + 8 * blocks, stride);
        Float y[R][kWide];
        GALLEY_ROWS GALLEY_WIDE y[r][c] = zero();
        int64_t left = layout.span, entry = 0;  // of the header's blocks and scales
        for (const uint8_t* end = side + 4 * blocks; scales[0] < end; scales.advance(4)) {
          if (!kSpans || left == layout.span) start_header(header, header_bytes, prefetch);
          if (kExpands) {
            GALLEY_WIDE {
              expand(w, codes + c * 64, layout.span - left, levels, scratch + c * 64,
                     c == 0 ? &prefetch : nullptr);
            }
          }
#pragma GCC unroll 2
          for (int sub = 0; sub < kSubs; sub++) {
            Int acc[R][kWide];
            start_sums(layout, header, entry + sub, half, starts, blocks, sub, acc);
            dot_part(kExpands ? scratch : codes, scratch, sub, q, kExpands ? none : prefetch, acc);
            ScaleAndMin weight[kWide];
            GALLEY_WIDE weight[c] = reader.template scales<kMin>(header, entry + sub, half + c);
            if (kExpands && b.keeps) {
              uint8_t* kept = scratch - half * 64 - kept_header;
              GALLEY_WIDE keep(layout, header, entry + sub, weight[c], sub, half + c, kept);
            }
            GALLEY_ROWS {
              const Float x_scale = all(float_at(scales[r]));
              GALLEY_WIDE y[r][c] =
                  fma(to_float(acc[r][c]), weight[c].scale * x_scale, y[r][c]);
              if (!kMin) continue;
              Float x_sum = all(float_at(sums[r]));
              if (kSubs > 1) {
                const float sum = -0.125f * static_cast<float>(part_start(starts[r], blocks, sub));
                x_sum = x_scale * all(sum);
              }
              GALLEY_WIDE y[r][c] = fma(weight[c].min, x_sum, y[r][c]);
            }
          }
          codes += code_bytes;
          if (!kSpans) {
            header += block_bytes;
            scratch += kGroup * kPanel;
          } else if (--left == 0) {
            header += header_bytes + layout.span * block_bytes, codes += header_bytes;
            left = layout.span, entry = 0;
          } else {
            entry += layout.entry_step;
          }
          if (kExpands && b.keeps) scratch += kept_header + kGroup * kPanel;
          q.advance(kGroup * kPlanes);
          starts.advance(4);
          sums.advance(4);
        }
        GALLEY_ROWS GALLEY_WIDE store(b.y + r * kPanel + (half + c) * kLanes, y[r][c]);
      }
    }

   private:
    static GALLEY_INLINE void start_header(const uint8_t* header, int64_t header_bytes,
                                           Prefetch& prefetch) {
      if (prefetch.second) {
        prefetch_lines(header + kAhead, header_bytes);
        prefetch.at = header + kAhead + header_bytes;
      } else {  // beside the header, half of one for each of the two row blocks that prefetch
        for (int64_t at = 0; at < header_bytes; at += 128) advance(prefetch);
      }
    }

    // Entry `sub` of a repacked header.
    static GALLEY_INLINE void keep(const BlockLayout& layout, const uint8_t* header, int64_t entry,
                                   const ScaleAndMin& weight, int sub, int half, uint8_t* kept) {
      const int64_t line = (sub * kHalves + half) * kLanes, lines = kSubs * kPanel;
      store(reinterpret_cast<float*>(kept) + line, weight.scale);
      if (kMin) store(reinterpret_cast<float*>(kept) + lines + line, weight.min);
      if (!kZeros) return;
      int32_t zeros[kLanes];
      store(zeros, layout.reader.zeros(header, entry, half));
      uint8_t* bytes = kept + lines * 4 + line;
      for (int c = 0; c < kLanes; c++) bytes[c] = static_cast<uint8_t>(zeros[c]);
    }

    // The start of dot products: minus the sum of x in the part, times what codes have too much.
    static GALLEY_INLINE void start_sums(const BlockLayout& layout, const uint8_t* header,
                                         int64_t entry, int half, const RowPointers<R>& starts,
                                         int64_t blocks, int sub, Int (&acc)[R][kWide]) {
      if (kZeros) {
        Int zeros[kWide];
        GALLEY_WIDE zeros[c] = layout.reader.zeros(header, entry, half + c) + all(-kBase);
        GALLEY_ROWS {
          const Int sum = all(part_start(starts[r], blocks, sub) >> 3);
          GALLEY_WIDE acc[r][c] = zeros[c] * sum;
        }
        return;
      }
      if (kSpans || (kSigned && layout.zero != 128)) {
        const int32_t times = layout.zero - kBase;
        GALLEY_ROWS {
          const int32_t start = (part_start(starts[r], blocks, sub) >> 3) * times;
          GALLEY_WIDE acc[r][c] = all(start);
        }
        return;
      }
      GALLEY_ROWS GALLEY_WIDE {
        const Int eight = all(part_start(starts[r], blocks, sub));
        if (kSigned) {
          acc[r][c] = kBase == 128 ? Int{} : shift_left<4>(eight);
        } else {
          acc[r][c] = kMin ? Int{} : eight;
        }
      }
    }

    // acc += sum of code * q over part `sub` of a block, of rows whose group is at `q`.
    static GALLEY_INLINE void dot_part(const uint8_t* codes, uint8_t* scratch, int sub,
                                       const RowPointers<R>& q, Prefetch& prefetch,
                                       Int (&acc)[R][kWide]) {
      Int high[R][kWide];  // of the first of two planes
      GALLEY_ROWS GALLEY_WIDE high[r][c] = Int{};
      Codes::each(codes, scratch, sub * 8 / kSubs, (sub + 1) * 8 / kSubs, prefetch,
                  [&](int j, const Int (&column)[kWide]) __attribute__((always_inline)) {
        GALLEY_ROWS {
          if (kPlanes == 2) {
            const int32_t value = word_at(q[r] + 4 * j);
            GALLEY_WIDE high[r][c] = dot<kSigned>(high[r][c], column[c], value);
          }
          const int32_t value = word_at(q[r] + (kPlanes - 1) * kGroup + 4 * j);
          GALLEY_WIDE acc[r][c] = dot<kSigned>(acc[r][c], column[c], value);
        }
      });
      if (kPlanes == 1) return;
      GALLEY_ROWS GALLEY_WIDE acc[r][c] = shift_left<8>(high[r][c]) + acc[r][c];
    }

    // -8 * the sum of x in a part; `starts` is followed by the scaled sums and then by the halves.
    static GALLEY_INLINE int32_t part_start(const uint8_t* starts, int64_t blocks, int sub) {
      if (kSubs == 1) return word_at(starts);
      const int32_t first = word_at(starts + 8 * blocks);
      return sub == 0 ? first : word_at(starts) - first;
    }
  };
};

// Codes as float32 [blocks * 32 of k][32 columns]: the values that unpack_row gives, for blocks
// [block, end) of a panel.
struct Expander {
  const WeightLayout& w;
  const uint8_t* data;
  bool is_float8;
  HeaderReader reader;

  explicit Expander(const LinearJob& job)
      : w(job.weight), data(job.data), is_float8(job.float8), reader(job.weight) {}

  void run(const uint8_t* panel, int64_t block, int64_t end, float* values) const {
    const int64_t span = w.span_blocks(), part = w.group == 16 ? 16 : kGroup;
    for (; block < end; block++, values += kGroup * kPanel) {
      const uint8_t* header = panel + w.header_at(block);
      const uint8_t* codes = panel + w.block_at(block);
      alignas(64) uint8_t bytes[kGroup * kPanel];
      const uint8_t* levels = w.table == CodeTable::levels ? data : nullptr;
      for (int c = 0; c < kHalves; c++) {
        expand(w, codes + c * 64, block % span, levels, bytes + c * 64, nullptr);
      }
      for (int64_t first = 0; first < kGroup; first += part) {
        const int64_t entry = w.group == 0 ? 0 : (block % span * kGroup + first) / w.group;
        for (int half = 0; half < kHalves; half++) {
          half_part(header, bytes + half * 64, entry, half, first / 4, (first + part) / 4, values);
        }
      }
    }
  }

 private:
  // Steps [first, last) of 16 columns.
  void half_part(const uint8_t* header, const uint8_t* codes, int64_t entry, int half,
                 int64_t first, int64_t last, float* values) const {
    const bool mins = w.has_mins();
    const ScaleAndMin affine = mins ? reader.scales<true>(header, entry, half)
                                    : reader.scales<false>(header, entry, half);
    Int zeros = all(w.table == CodeTable::levels ? 128 : w.zero);
    if (w.offset == Offset::zeros) zeros = reader.zeros(header, entry, half);
    for (int64_t j = first; j < last; j++) {
      Int word = words(codes + j * kHalves * 64);
      for (int64_t i = 0; i < 4; i++, word = shift_right<8>(word)) {
        Float value = affine.scale * level(word & all(255), zeros);
        if (mins) value = value + affine.min;
        store(values + (4 * j + i) * kPanel + half * kLanes, value);
      }
    }
  }
  GALLEY_INLINE Float level(const Int& code, const Int& zeros) const {
    if (w.table != CodeTable::floats) return to_float(code - zeros);
    const float* table = reinterpret_cast<const float*>(data);
    if (is_float8) return float8(table, code);
    return w.format == Format::i4 ? look_up16(table, code) : look_up(table, code);
  }
};

using RunBlock = void (*)(int rows, const Block&);

// Rows<R>::run for the R that the block has.
template <template <int> class Rows, int R> void run_block(int rows, const Block& b) {
  if (rows == R) return Rows<R>::run(b);
  if constexpr (R > 1) run_block<Rows, R - 1>(rows, b);
}

// How the row blocks of a panel are computed: the only one, the first of several, the others.
struct Kernel {
  RunBlock lone, first, other;
  int max_rows;
  int64_t words;  // of K, where it can be cut; else 0
  bool repacks;   // `other` reads the panel that `first` has repacked to scratch
};

template <template <int> class Rows, int kMax> constexpr Kernel same(int64_t words = 0) {
  return {run_block<Rows, kMax>, run_block<Rows, kMax>, run_block<Rows, kMax>, kMax, words, false};
}

// One of several row blocks on 8-bit codes in plain blocks, as they are or repacked.
template <int kSubs, Offset kOffset, int kPlanes>
using PlainBytes = Grouped<Bytes<false>, true, kSubs, kOffset, kPlanes, false>;

template <int kSubs, Offset kOffset, int kPlanes> Kernel plain_or_repacked(const WeightLayout& w) {
  constexpr int kMax = kGroupRows<kPlanes>;
  Kernel kernel = same<PlainBytes<kSubs, kOffset, kPlanes>::template Rows, kMax>();
  kernel.repacks = !w.plain_blocks();
  if (!kernel.repacks) return kernel;
  kernel.lone = kernel.first =
      run_block<Grouped<Bytes<true>, true, kSubs, kOffset, kPlanes, true>::template Rows, kMax>;
  if constexpr (kSubs == 1) {
    if (w.format == Format::i4 && w.table == CodeTable::none) {
      kernel.lone =
          run_block<Grouped<Nibbles<false>, false, 1, kOffset, kPlanes, true>::template Rows, kMax>;
    }
  }
  return kernel;
}
template <Offset kOffset, int kPlanes> Kernel grouped(const WeightLayout& w) {
  if constexpr (kOffset != Offset::zeros) {
    if (w.format == Format::i4 && w.plain_blocks()) {
      constexpr int kMax = kGroupRows<kPlanes>;
      using Lone = Grouped<Nibbles<false>, false, 1, kOffset, kPlanes, false>;
      using First = Grouped<Nibbles<true>, false, 1, kOffset, kPlanes, false>;
      using Other = Grouped<Bytes<true>, false, 1, kOffset, kPlanes, false>;
      return {run_block<Lone::template Rows, kMax>, run_block<First::template Rows, kMax>,
              run_block<Other::template Rows, kMax>, kMax, 0, false};
    }
  }
  return w.parts() == 2 ? plain_or_repacked<2, kOffset, kPlanes>(w)
                        : plain_or_repacked<1, kOffset, kPlanes>(w);
}
template <int kPlanes> Kernel grouped(const WeightLayout& w) {
  switch (w.offset) {
    case Offset::min:
    case Offset::fractions: return grouped<Offset::min, kPlanes>(w);
    case Offset::zeros: return grouped<Offset::zeros, kPlanes>(w);
    default: return grouped<Offset::zero, kPlanes>(w);
  }
}

Kernel kernel_of(const LinearJob& job) {
  const WeightLayout& w = job.weight;
  switch (job.x_kind) {
    case Kind::f32: return same<FloatRows, kWordRows>(w.k);
    case Kind::bf16: return same<Bf16Rows, kWordRows>(w.k / 2);
    case Kind::q8: return grouped<1>(w);
    case Kind::q16: return grouped<2>(w);
    case Kind::q8_row: break;
  }
  return same<PerRow, kWordRows>(w.blocks() * (kGroup / 4));
}

// The rows of a tile, in blocks of even size.
struct RowBlocks {
  int64_t begin, end, count, size, larger;  // the first `larger` blocks have one row more

  RowBlocks(int64_t begin, int64_t end, int max_rows)
      : begin(begin), end(end), count((end - begin + max_rows - 1) / max_rows),
        size((end - begin) / count), larger((end - begin) % count) {}
  // Calls use(number of the block, first row, rows).
  template <class Use> void each(const Use& use) const {
    int64_t row = begin;
    for (int64_t i = 0; i < count; i++) {
      const int rows = static_cast<int>(size + (i < larger));
      use(i, row, rows);
      row += rows;
    }
  }
};

// Panel by panel.
void whole_panels(const LinearJob& job, const Kernel& kernel, int64_t panel, int64_t count,
                  const RowBlocks& blocks, uint8_t* scratch) {
  const int64_t bytes = job.weight.panel_bytes();
  const bool lone = blocks.count == 1;
  const bool repacks = kernel.repacks && !lone;
  // From prefetch to prefetch of the second row block, which may read codes as bytes: more lines than there are
  // to prefetch.
  int64_t step = in_groups(job.x_kind) ? bytes / (16 * job.weight.blocks()) + 1 : 64;
  if (step > 64) step = 64;
  const BlockLayout packed(job.weight), repacked = BlockLayout::repacked(job.weight);
  alignas(64) float y[kWordRows * kPanel];
  alignas(64) float pair[kChunkRows * kPanel];
  for (int64_t p = panel; p < panel + count; p++) {
    const uint8_t* at = job.weight.panel(job.data, p);
    Block b{&job, &packed, at, scratch, repacks, nullptr, {}, y, 0, kernel.words};
    blocks.each([&](int64_t i, int64_t row, int rows) {
      if (repacks && i == 1) b.layout = &repacked, b.panel = scratch;
      b.x = job.x + row * job.x_bytes;
      b.prefetch = Prefetch{};
      if (lone) {
        b.prefetch = {at + kAhead, 128, 64};
      } else if (i < 2) {
        b.prefetch = {at + bytes + i * (bytes / 2), i == 0 ? 64 : step, 0};
      }
      (lone ? kernel.lone : i == 0 ? kernel.first : kernel.other)(rows, b);
      finish(job, p, row, rows, y, pair + (row - blocks.begin) * kPanel);
    });
  }
}

// Some panels, piece by piece of K. `sums`: [panel][row][32].
void panels_in_pieces(const LinearJob& job, const Kernel& kernel, int64_t panel, int64_t count,
                      const RowBlocks& blocks, float* sums) {
  const int64_t bytes = job.weight.panel_bytes(), rows_in_all = blocks.end - blocks.begin;
  alignas(64) float pair[kChunkRows * kPanel];
  for (int64_t word = 0; word < kernel.words; word += kPiece) {
    const int64_t end = word + kPiece < kernel.words ? word + kPiece : kernel.words;
    for (int64_t p = 0; p < count; p++) {
      const uint8_t* at = job.weight.panel(job.data, panel + p);
      Block b{&job, nullptr, at, nullptr, false, nullptr, {}, nullptr, word, end};
      const uint8_t* next = p + 1 < count        ? at + bytes + word * kWordBytes
                            : end < kernel.words ? at - p * bytes + end * kWordBytes
                                                 : at + bytes;
      blocks.each([&](int64_t i, int64_t row, int rows) {
        b.x = job.x + row * job.x_bytes;
        b.y = sums + (p * rows_in_all + row - blocks.begin) * kPanel;
        b.prefetch = i < 2 ? Prefetch{next + i * (kPiece * kWordBytes / 2), 64, 0} : Prefetch{};
        kernel.other(rows, b);
        if (end < kernel.words) return;
        finish(job, panel + p, row, rows, b.y, pair + (row - blocks.begin) * kPanel);
      });
    }
  }
}

// Codes on float32 rows: a piece of a panel becomes float32, then all rows go through it. The same
// order of additions, so the same bits, as of a dense weight of these values.
void expanded_panels(const LinearJob& job, int64_t panel, int64_t count, const RowBlocks& blocks,
                     uint8_t* scratch) {
  float* values = reinterpret_cast<float*>(scratch);
  float* sums = values + kExpandedBlocks * kGroup * kPanel;
  alignas(64) float pair[kChunkRows * kPanel];
  const Expander expander(job);
  const int64_t in_all = job.weight.blocks(), k = job.weight.k;
  for (int64_t p = panel; p < panel + count; p++) {
    for (int64_t block = 0; block < in_all; block += kExpandedBlocks) {
      const int64_t last = block + kExpandedBlocks < in_all ? block + kExpandedBlocks : in_all;
      expander.run(job.weight.panel(job.data, p), block, last, values);
      const int64_t word = block * kGroup, end = last * kGroup < k ? last * kGroup : k;
      // The kernel adds the piece's place in K to the panel.
      const uint8_t* at = scratch - word * kWordBytes;
      Block b{&job, nullptr, at, nullptr, false, nullptr, {}, nullptr, word, end};
      blocks.each([&](int64_t, int64_t row, int rows) {
        b.x = job.x + row * job.x_bytes;
        b.y = sums + (row - blocks.begin) * kPanel;
        run_block<FloatRows, kWordRows>(rows, b);
        if (end < k) return;
        finish(job, p, row, rows, b.y, pair + (row - blocks.begin) * kPanel);
      });
    }
  }
}

void linear_tile(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                 int64_t row_end, uint8_t* scratch) {
  if (job.weight.in_spans() && job.x_kind == Kind::f32) {
    alignas(64) float pair[kChunkRows * kPanel];
    const RowBlocks blocks(row_begin, row_end, kSpanRows);
    return span_panels(job, panel, count, blocks, scratch,
                       [&](int64_t p, int64_t row, int rows, float* y) {
                         finish(job, p, row, rows, y, pair + (row - row_begin) * kPanel);
                       });
  }
  const Kernel kernel = kernel_of(job);
  const RowBlocks blocks(row_begin, row_end, kernel.max_rows);
  if (job.weight.quantised() && job.x_kind == Kind::f32) {
    return expanded_panels(job, panel, count, blocks, scratch);
  }
  if (blocks.count == 1 || kernel.words <= kUncut) {
    whole_panels(job, kernel, panel, count, blocks, scratch);
    return;
  }
  for (int64_t done = 0; done < count; done += kPiecePanels) {
    const int64_t left = count - done;
    panels_in_pieces(job, kernel, panel + done, left < kPiecePanels ? left : kPiecePanels, blocks,
                     reinterpret_cast<float*>(scratch));
  }
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
