// Op `prompt_rows`: embedding rows that a prompt brings, in place of those of its token ids.
// Where i = prompt_row[slot][position] > 0: out[t] = row i - 1 of the float32 rows [..][n] at the
// address prompt_rows[slot].
// Pointers: out (f32 [tokens][n]). Ints: n. Columns: prompt_rows (u64 by slot), prompt_row (i32 by
// slot). Tile: a token.
#include <cstring>

#include "program.h"

namespace galley {
namespace {

class PromptRows final : public Op {
 public:
  explicit PromptRows(const Args& a)
      : out_(a.ptr<float>("out")), n_(a.size("n")), rows_(a.column<uint64_t>("prompt_rows")),
        row_(a.column<int32_t>("prompt_row")) {}

  int64_t tiles(const Step& step, int) const override { return step.tokens; }
  int64_t grain(const Step&) const override { return 64; }

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    for (int64_t t = begin; t < end; t++) {
      const int32_t slot = step.slots[step.token_row[t]];
      const uint64_t address = rows_[slot];
      if (address == 0) continue;
      const int32_t i = row_.row(slot)[step.positions[t]];
      if (i <= 0) continue;
      const float* rows = reinterpret_cast<const float*>(static_cast<uintptr_t>(address));
      std::memcpy(out_ + t * n_, rows + (i - 1) * n_, n_ * sizeof(float));
    }
  }

 private:
  float* out_;
  int64_t n_;
  ColumnOf<uint64_t> rows_;
  ColumnOf<int32_t> row_;
};

GALLEY_OP(prompt_rows, PromptRows);

}  // namespace
}  // namespace galley
