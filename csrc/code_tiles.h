// Codes with scales on rows of bf16, by AMX tiles; included by linear_amx.h.
//
// Levels, the codes less their zero, are exact in bf16; those of a table of floats are rounded to it. Of a
// part, the values of one scale (at most kPieceBlocks blocks of them), products are summed in the order of
// linear_amx.h; then y = fma(sum, scale, y), and with mins y = fma(sum of x, min, y). A lone row, for which
// expanding the levels would take longer than reading the codes, adds the same numbers in the same order
// without tiles.
#pragma once
#include "code_levels.h"
#include "linear_epilogue.h"
#include "tile_blocks.h"

namespace galley {
namespace GALLEY_VARIANT {

// A tile multiplies with a block, or half of one where scales are of 16 values: 1 / kSubs of it, a step.
template <int kSubs> constexpr int64_t kStepBytes = kTileBytes / kSubs;             // of a row
template <int kSubs> constexpr int64_t kStepLines = kTileWords / kSubs * kWordBytes;  // of levels
constexpr int64_t kBlockLines = kStepLines<1>;

// The parts of a piece: blocks [block, block + count) of a panel.
template <int kSubs> struct CodeParts {
  static constexpr int kMost = kPieceBlocks * kSubs;
  const WeightLayout* weight;
  int64_t span, of_scale, header_bytes, block_bytes;  // blocks of a header, and of a scale
  int64_t block, count;
  int parts, begin[kMost + 1];  // of each part: its first step
  const uint8_t* codes[kPieceBlocks];
  const uint8_t* zeros_of[kPieceBlocks];
  alignas(64) float scales[kMost][kPanel];
  alignas(64) float mins[kMost][kPanel];
  alignas(64) uint8_t zeros[kPieceBlocks][kHalves * 64];  // of each column four times, if any

  explicit CodeParts(const WeightLayout& w)
      : weight(&w), span(w.span_blocks()), of_scale(w.scale_blocks()), header_bytes(w.header_bytes()),
        block_bytes(w.block_bytes()) {}

  // Borders of the parts of the piece that begins at block `first`.
  void cut(int64_t first) {
    const int64_t left = weight->blocks() - first;
    block = first, count = left < kPieceBlocks ? left : kPieceBlocks, parts = 0;
    int64_t in_scale = kSubs == 1 ? first % of_scale : 0;
    for (int step = 0; step < count * kSubs; step++) {
      if (step == 0 || in_scale == 0) begin[parts++] = step;
      if (kSubs == 1 && ++in_scale == of_scale) in_scale = 0;
    }
    begin[parts] = static_cast<int>(count) * kSubs;
  }

  // The same, and what a panel has for them.
  template <bool kMins> void read(const HeaderReader& reader, const uint8_t* panel, int64_t first) {
    cut(first);
    const bool has_zeros = weight->offset == Offset::zeros;
    int64_t in_span = first % span;
    const uint8_t* header = panel + weight->header_at(first);
    const uint8_t* at = header + header_bytes + in_span * block_bytes;
    ScaleAndMin upper[kHalves] = {};
    switch (reader.kind) {
      case Scale::u6: return read_header<kMins, Scale::u6>(reader, header);
      case Scale::u4: return read_header<kMins, Scale::u4>(reader, header);
      case Scale::i8: return read_header<kMins, Scale::i8>(reader, header);
      case Scale::s6: return read_header<kMins, Scale::s6>(reader, header);
      default: break;
    }
    for (int part = 0; part < parts; part++) {
      int step = begin[part];
      const int sub = step % kSubs;
      if (sub == 0 && in_span == span) in_span = 0, header = at, at += header_bytes;
      if (sub == 0 && in_span == 0) {
        for (int64_t b = 0; b < header_bytes; b += 64) __builtin_prefetch(header + kAhead + b);
      }
      if (part == 0 || in_span == 0) {
        for (int half = 0; half < kHalves; half++) upper[half] = reader.upper<kMins>(header, half);
      }
      const int64_t entry = kSubs == 2 ? 2 * in_span - sub : of_scale == 1 ? in_span : in_span / of_scale;
      for (int half = 0; half < kHalves; half++) {
        const ScaleAndMin affine = reader.scales<kMins>(upper[half], header, entry, half);
        store(scales[part] + half * kLanes, affine.scale);
        if (kMins) store(mins[part] + half * kLanes, affine.min);
        if (kSubs == 1 && has_zeros) {
          auto* to = reinterpret_cast<int32_t*>(zeros[part] + half * 64);
          store(to, four_times(reader.zeros(header, entry, half)));
        }
      }
      for (; step < begin[part + 1]; step++) {
        if (step % kSubs) continue;
        codes[step / kSubs] = at, zeros_of[step / kSubs] = zeros[part / kSubs];
        at += block_bytes, in_span++;
      }
    }
  }

 private:
  // Of scales of two levels, of which a piece has one header.
  template <bool kMins, Scale kKind> void read_header(const HeaderReader& reader, const uint8_t* header) {
    HeaderReader known = reader;
    known.kind = kKind;
    for (int64_t b = 0; b < header_bytes; b += 64) __builtin_prefetch(header + kAhead + b);
    for (int half = 0; half < kHalves; half++) {
      const ScaleAndMin upper = known.template upper<kMins>(header, half);
      ScaleAndMin each[kMost];  // in registers: entries share bytes
      _Pragma("GCC unroll 16") for (int i = 0; i < kMost; i++) {
        each[i] = known.template scales<kMins>(upper, header, i, half);
      }
      _Pragma("GCC unroll 16") for (int i = 0; i < kMost; i++) {
        store(scales[i] + half * kLanes, each[i].scale);
        if (kMins) store(mins[i] + half * kLanes, each[i].min);
      }
    }
    for (int i = 0; i < count; i++) codes[i] = header + header_bytes + i * block_bytes, zeros_of[i] = zeros[i];
  }
};

// The rows of a tile (which may have fewer) and a piece, of which `lines` has the levels; adds it to
// y [kTileRows][32].
// Some parts are multiplied, then scaled: tiles and vectors in turn would wait for each other.
template <int kSubs, bool kMins> class CodeTiles {
 public:
  using Parts = CodeParts<kSubs>;

  // x: the rows at the piece's first block; x_sums: of these rows for each part, `stride` apart.
  // between(): called for each block.
  template <class Between>
  void add(const Parts& p, const uint8_t* lines, const uint8_t* x, int64_t x_bytes, const float* x_sums,
           int64_t stride, float* y, const Between& between) {
    for (int first = 0; first < p.parts; first += kBatch) {
      const int end = first + kBatch < p.parts ? first + kBatch : p.parts;
      for (int part = first; part < end; part += 2) {
        multiply<c00, c01>(p, part, lines, x, x_bytes, sums_[part - first], between);
        if (part + 1 == end) break;
        multiply<c10, c11>(p, part + 1, lines, x, x_bytes, sums_[part + 1 - first], between);
      }
      for (int half = 0; half < kHalves; half++) {
        Float acc[kTileRows];
        for (int r = 0; r < kTileRows; r++) acc[r] = load(y + r * kPanel + half * kLanes);
        for (int part = first; part < end; part++) {
          const Float scale = load(p.scales[part] + half * kLanes);
          const float* sums = sums_[part - first][half];
          _Pragma("GCC unroll 16") for (int r = 0; r < kTileRows; r++) {
            acc[r] = fma(load(sums + r * kLanes), scale, acc[r]);
          }
          if (!kMins) continue;
          const Float min = load(p.mins[part] + half * kLanes);
          const float* of_x = x_sums + part * stride;
          _Pragma("GCC unroll 16") for (int r = 0; r < kTileRows; r++) acc[r] = fma(all(of_x[r]), min, acc[r]);
        }
        for (int r = 0; r < kTileRows; r++) store(y + r * kPanel + half * kLanes, acc[r]);
      }
    }
  }

 private:
  static constexpr int kBatch = 4;
  using Sums = float[kHalves][kTileRows * kLanes];

  template <Tile first, Tile second, class Between>
  static GALLEY_INLINE void multiply(const Parts& p, int part, const uint8_t* lines, const uint8_t* x,
                                     int64_t x_bytes, Sums& sums, const Between& between) {
    zero_tile<first>(), zero_tile<second>();
    for (int step = p.begin[part]; step < p.begin[part + 1]; step++) {
      const uint8_t* w = lines + step * kStepLines<kSubs>;
      load_tile<a0>(x + step * kStepBytes<kSubs>, x_bytes);
      load_tile<b0>(w, kWordBytes);
      add_bf16<first, a0, b0>();
      load_tile<b1>(w + 64, kWordBytes);
      add_bf16<second, a0, b1>();
      if (step % kSubs == 0) between();
    }
    store_tile<first>(sums[0], kLanes * 4);
    store_tile<second>(sums[1], kLanes * 4);
  }

  alignas(64) Sums sums_[kBatch] = {};  // 0 where the tiles have no rows
};

// Rows [begin, begin + rows) in tiles of `size`, of which the last one overlaps with the one before it where
// they do not fit.
struct CodeRows {
  int64_t begin, rows, size;

  int64_t first(int64_t done) const { return done + size < begin + rows ? done : begin + rows - size; }
};

// Sums of x for each part, [steps of K][rows], of a piece from its first step on. Leaves tiles of its own.
template <int kSubs> void sum_rows(const LinearJob& job, const CodeRows& of, float* sums) {
  const int size = static_cast<int>(of.size), words = kTileWords / kSubs;
  TileConfig config;
  config.set(c00, size, 4), config.set(a0, size, 4 * words), config.set(b0, words, 4);
  config.load();
  CodeParts<kSubs> p(job.weight);
  alignas(64) uint32_t ones[kTileWords];
  for (uint32_t& two : ones) two = 0x3f803f80;
  load_tile<b0>(ones, 4);
  for (int64_t block = 0; block < job.weight.blocks(); block += kPieceBlocks) {
    p.cut(block);
    for (int64_t done = of.begin; done < of.begin + of.rows; done += of.size) {
      const int64_t row = of.first(done);
      const uint8_t* x = job.x + row * job.x_bytes + block * kTileBytes;
      for (int part = 0; part < p.parts; part++) {
        zero_tile<c00>();
        for (int step = p.begin[part]; step < p.begin[part + 1]; step++) {
          load_tile<a0>(x + step * kStepBytes<kSubs>, job.x_bytes);
          add_bf16<c00, a0, b0>();
        }
        store_tile<c00>(sums + (block * kSubs + part) * of.rows + row - of.begin, 4);
      }
    }
  }
}

template <int kSubs, bool kMins>
void code_tiles(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin, int64_t row_end,
                float* x_sums) {
  const WeightLayout& w = job.weight;
  const HeaderReader reader(w, job.data);
  const CodeLevels levels(job);
  const ToBf16 to_levels = to_bf16_of(w);
  const int64_t blocks = w.blocks(), pieces = (blocks + kPieceBlocks - 1) / kPieceBlocks;
  const int64_t rows = row_end - row_begin;
  const CodeRows of{row_begin, rows, rows < kTileRows ? rows : kTileRows};
  // Tiles cannot be loaded from lines that are still being stored: a piece is expanded while the tiles multiply
  // with the one before it.
  CodeParts<kSubs> parts[2] = {CodeParts<kSubs>(w), CodeParts<kSubs>(w)};
  alignas(64) uint8_t lines[2][kPieceBlocks * kBlockLines];
  int64_t next = 0, left = 0;  // the piece that is expanded, and its blocks that are not yet
  const auto begin = [&](int64_t number) {
    next = number;
    if (number == count * pieces) return;
    CodeParts<kSubs>& p = parts[number % 2];
    p.template read<kMins>(reader, w.panel(job.data, panel + number / pieces), number % pieces * kPieceBlocks);
    left = p.count;
  };
  const auto expand = [&] {
    if (left == 0) return;
    const CodeParts<kSubs>& p = parts[next % 2];
    const int64_t block = p.count - left--;
    to_levels(levels, p.codes[block], p.zeros_of[block], lines[next % 2] + block * kBlockLines);
  };
  CodeTiles<kSubs, kMins> tiles;
  alignas(64) float results[(kChunkRows + kTileRows) * kPanel], pair[kChunkRows * kPanel];
  if (kMins) sum_rows<kSubs>(job, of, x_sums);
  configure_tiles(static_cast<int>(of.size), static_cast<int>(of.size), kTileWords / kSubs);
  begin(0);
  for (int64_t number = 0; number < count * pieces; number++) {
    while (left > 0) expand();
    begin(number + 1);
    const CodeParts<kSubs>& p = parts[number % 2];
    if (p.block == 0) memset(results, 0, round_up(rows, kTileRows) * kPanel * 4);
    for (int64_t done = row_begin; done < row_end; done += of.size) {
      const int64_t row = of.first(done);
      const uint8_t* x = job.x + row * job.x_bytes + p.block * kTileBytes;
      const float* of_x = x_sums + p.block * kSubs * rows + row - row_begin;
      float* y = results + (done - row_begin) * kPanel;
      tiles.add(p, lines[number % 2], x, job.x_bytes, of_x, rows, y, expand);
      if (p.block + p.count < blocks) continue;
      finish(job, panel + number / pieces, done, static_cast<int>(row + of.size - done),
             y + (done - row) * kPanel, pair + (done - row_begin) * kPanel);
    }
  }
  release_tiles();
}

// At most R rows. Vectors wait for tiles to be stored: those of sums have two parts, one below the other. A tile
// of x has the rows for the one part and again for the other, with zeros in place of what is not of it.
template <int R, int kSubs, bool kMins> class FewCodeRows {
 public:
  // `scratch`: linear_scratch_bytes.
  FewCodeRows(const LinearJob& job, int64_t row, int rows, float* scratch)
      : job_(job), row_(row), rows_(rows), x_(reinterpret_cast<uint8_t*>(scratch)),
        x_sums_(scratch + job.weight.blocks() * kXBytes / 4), reader_(job.weight, job.data), levels_(job),
        to_levels_(to_bf16_of(job.weight)) {
    if (kMins) sum_rows<kSubs>(job, {row, rows, rows}, x_sums_);
    spread_rows();
  }

  void run(int64_t panel, int64_t count) {
    configure_tiles(2 * R, 2 * R);
    panel_ = panel, last_ = panel + count;
    for (int i = 0; i < kLinesAhead; i++) expand();
    for (; panel < last_; panel++) {
      memset(y_, 0, sizeof y_);
      for (int64_t first = 0; first < job_.weight.blocks(); first += kPieceBlocks) {
        add(parts_[piece_++ % kParts], x_ + first * kXBytes, x_sums_ + first * kSubs * rows_);
      }
      scale();
      finish(job_, panel, row_, rows_, y_, pair_);
    }
    release_tiles();
  }

 private:
  using Parts = CodeParts<kSubs>;
  // Blocks that are expanded ahead, for lines cannot be loaded while they are stored; these and the one in use
  // are of three pieces at most.
  static constexpr int kLinesAhead = 2, kLines = 4, kParts = 3;
  static constexpr int64_t kXBytes = 2 * R * kTileBytes;  // of a block
  using Sums = float[kHalves][2 * R * kLanes];

  // Parts that are multiplied and not yet scaled.
  struct Waiting {
    const Parts* p = nullptr;
    int part, end;
    const float *x_sums, *sums;
  };

  void spread_rows() {
    memset(x_, 0, job_.weight.blocks() * kXBytes);
    Parts& p = parts_[0];
    uint8_t* to = x_;
    for (int64_t first = 0; first < job_.weight.blocks(); first += kPieceBlocks, to += kPieceBlocks * kXBytes) {
      const uint8_t* from = job_.x + row_ * job_.x_bytes + first * kTileBytes;
      p.cut(first);
      for (int part = 0; part < p.parts; part++) {
        for (int step = p.begin[part]; step < p.begin[part + 1]; step++) {
          const int64_t in_block = step % kSubs * kStepBytes<kSubs>;
          for (int r = 0; r < rows_; r++) {
            memcpy(to + step / kSubs * kXBytes + (part % 2 * R + r) * kTileBytes + in_block,
                   from + r * job_.x_bytes + step * kStepBytes<kSubs>, kStepBytes<kSubs>);
          }
        }
      }
    }
  }

  // The next block of the panels, if there is one.
  GALLEY_INLINE void expand() {
    const int64_t blocks = job_.weight.blocks();
    if (block_ == blocks) block_ = 0, panel_++;
    if (panel_ == last_) return;
    const int in_piece = static_cast<int>(block_ % kPieceBlocks);
    if (in_piece == 0) pieces_++;
    Parts& p = parts_[pieces_ % kParts];
    if (in_piece == 0) p.template read<kMins>(reader_, job_.weight.panel(job_.data, panel_), block_);
    to_levels_(levels_, p.codes[in_piece], p.zeros_of[in_piece], lines_[expanded_++ % kLines]);
    block_++;
  }

  void add(const Parts& p, const uint8_t* x, const float* x_sums) {
    for (int part = 0; part < p.parts; part += 4) {
      multiply<c00, c01>(p, part, x, x_sums, sums_[0]);
      if (part + 2 < p.parts) multiply<c10, c11>(p, part + 2, x, x_sums, sums_[1]);
    }
  }

  // Two parts, or the last one.
  template <Tile left, Tile right>
  GALLEY_INLINE void multiply(const Parts& p, int part, const uint8_t* x, const float* x_sums, Sums& sums) {
    const int end = part + 2 < p.parts ? part + 2 : p.parts;
    zero_tile<left>(), zero_tile<right>();
    for (int block = p.begin[part] / kSubs; block < p.begin[end] / kSubs; block++) {
      const uint8_t* lines = lines_[multiplied_++ % kLines];
      load_tile<a0>(x + block * kXBytes, kTileBytes);
      load_tile<b0>(lines, kWordBytes);
      add_bf16<left, a0, b0>();
      load_tile<b1>(lines + 64, kWordBytes);
      add_bf16<right, a0, b1>();
      scale();
      expand();
    }
    store_tile<left>(sums[0], kLanes * 4), store_tile<right>(sums[1], kLanes * 4);
    waiting_ = {&p, part, end, x_sums, sums[0]};
  }

  GALLEY_INLINE void scale() {
    if (waiting_.p == nullptr) return;
    if (waiting_.end - waiting_.part == 2) scale<2>(waiting_);
    else scale<1>(waiting_);
    waiting_.p = nullptr;
  }
  template <int kCount> GALLEY_INLINE void scale(const Waiting& w) {
    const float* of_x = w.x_sums + w.part * rows_;
    for (int half = 0; half < kHalves; half++) {
      Float scale[kCount], min[kCount];
      for (int i = 0; i < kCount; i++) {
        scale[i] = load(w.p->scales[w.part + i] + half * kLanes);
        min[i] = load(w.p->mins[w.part + i] + half * kLanes);
      }
      const float* sums = w.sums + 2 * half * R * kLanes;
      _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {
        float* y = y_ + r * kPanel + half * kLanes;
        Float sum = load(y);
        _Pragma("GCC unroll 2") for (int i = 0; i < kCount; i++) {
          sum = fma(load(sums + (i * R + r) * kLanes), scale[i], sum);
          if (kMins) sum = fma(all(of_x[i * rows_ + r]), min[i], sum);
        }
        store(y, sum);
      }
    }
  }

  const LinearJob& job_;
  const int64_t row_;
  const int rows_;
  uint8_t* x_;
  float* x_sums_;
  const HeaderReader reader_;
  const CodeLevels levels_;
  const ToBf16 to_levels_;
  int64_t panel_ = 0, last_ = 0, block_ = 0;  // of what is expanded next
  uint32_t pieces_ = ~0u, piece_ = 0;         // read, and used
  uint32_t expanded_ = 0, multiplied_ = 0;
  Waiting waiting_;
  Parts parts_[kParts] = {Parts(job_.weight), Parts(job_.weight), Parts(job_.weight)};
  alignas(64) uint8_t lines_[kLines][kBlockLines];
  alignas(64) Sums sums_[2];
  alignas(64) float y_[R * kPanel], pair_[R * kPanel];
};

// x [k]: the row as float32; x_sums: as of sum_rows.
template <Format kFormat, bool kZeros, int kSubs, bool kMins>
void add_code_row(const LinearJob& job, int64_t panel, int64_t count, int64_t row, const float* x,
                  const float* x_sums) {
  const WeightLayout& w = job.weight;
  const HeaderReader reader(w, job.data);
  const CodeLevels levels(job);
  CodeParts<kSubs> p(w);
  alignas(64) float y[kPanel], pair[kPanel];
  for (int64_t number = panel; number < panel + count; number++) {
    Float sums[kHalves] = {}, dot[kHalves] = {};
    for (int64_t first = 0; first < w.blocks(); first += kPieceBlocks) {
      p.template read<kMins>(reader, w.panel(job.data, number), first);
      int part = 0;
      for (int block = 0; block < p.count; block++) {
        const uint8_t *codes = p.codes[block], *zeros = p.zeros_of[block];
        const HalfBlock<kFormat> halves[kHalves] = {HalfBlock<kFormat>(codes), HalfBlock<kFormat>(codes + 64)};
        const float* four = x + (first + block) * kGroup;
        _Pragma("GCC unroll 2") for (int sub = 0; sub < kSubs; sub++) {
          Float parity[kHalves][2] = {};
          _Pragma("GCC unroll 8") for (int j = 0; j < 8 / kSubs; j++, four += 4) {
            _Pragma("GCC unroll 2") for (int half = 0; half < kHalves; half++) {
              const __m512i step = halves[half].step(sub * 8 / kSubs + j);
              const Four level = levels.floats<kFormat>(less_zeros<kZeros>(step, zeros + half * 64));
              _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) {
                parity[half][k % 2] = fma(all(four[k]), level.k[k], parity[half][k % 2]);
              }
            }
          }
          const bool ends = block * kSubs + sub + 1 == p.begin[part + 1];
          _Pragma("GCC unroll 2") for (int half = 0; half < kHalves; half++) {
            dot[half] = dot[half] + (parity[half][0] + parity[half][1]);
            if (!ends) continue;
            sums[half] = fma(dot[half], load(p.scales[part] + half * kLanes), sums[half]);
            dot[half] = Float{};
            if (!kMins) continue;
            const Float of_x = all(x_sums[first * kSubs + part]);
            sums[half] = fma(of_x, load(p.mins[part] + half * kLanes), sums[half]);
          }
          part += ends;
        }
      }
    }
    for (int half = 0; half < kHalves; half++) store(y + half * kLanes, sums[half]);
    finish(job, number, row, 1, y, pair);
  }
}

template <int kSubs, bool kMins>
void lone_code_row(const LinearJob& job, int64_t panel, int64_t count, int64_t row, float* scratch) {
  const WeightLayout& w = job.weight;
  float *x = scratch, *x_sums = scratch + w.k;
  const uint8_t* words = job.x + row * job.x_bytes;
  for (int64_t k = 0; k < w.k; k += kLanes) store(x + k, load_bf16_line(words + 2 * k));
  if (kMins) {
    sum_rows<kSubs>(job, {row, 1, 1}, x_sums);
    release_tiles();
  }
  const auto kernel = [&] {
    if (w.offset == Offset::zeros) return add_code_row<Format::i4, true, kSubs, kMins>;
    switch (w.format) {
      case Format::i2: return add_code_row<Format::i2, false, kSubs, kMins>;
      case Format::i3: return add_code_row<Format::i3, false, kSubs, kMins>;
      case Format::i5: return add_code_row<Format::i5, false, kSubs, kMins>;
      case Format::i6: return add_code_row<Format::i6, false, kSubs, kMins>;
      case Format::i8: return add_code_row<Format::i8, false, kSubs, kMins>;
      default: return add_code_row<Format::i4, false, kSubs, kMins>;
    }
  }();
  kernel(job, panel, count, row, x, x_sums);
}

template <int kSubs, bool kMins>
void code_panels(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin, int64_t row_end,
                 float* scratch) {
  const int rows = static_cast<int>(row_end - row_begin);
  if (rows == 1) return lone_code_row<kSubs, kMins>(job, panel, count, row_begin, scratch);
  if (rows <= 4) return FewCodeRows<4, kSubs, kMins>(job, row_begin, rows, scratch).run(panel, count);
  if (rows <= 8) return FewCodeRows<8, kSubs, kMins>(job, row_begin, rows, scratch).run(panel, count);
  code_tiles<kSubs, kMins>(job, panel, count, row_begin, row_end, scratch);
}

// `scratch`: linear_scratch_bytes.
inline void code_panels(const LinearJob& job, int64_t panel, int64_t count, int64_t row_begin,
                        int64_t row_end, float* scratch) {
  const FlushToZero flush;
  const bool halves = job.weight.parts() == 2, mins = job.weight.has_mins();
  const auto panels = halves ? mins ? code_panels<2, true> : code_panels<2, false>
                      : mins ? code_panels<1, true>
                             : code_panels<1, false>;
  panels(job, panel, count, row_begin, row_end, scratch);
}

}  // namespace GALLEY_VARIANT
}  // namespace galley
