// Op `state_rewind`: the states of rows whose drafts were rejected become those before the first
// rejected one.
// Pointers: state (this layer's base), snapshots (f32 [most_drafts][units][unit_size]). Ints: units,
// unit_size, most_drafts, and those of every op over a state. Columns: block_table, num_kept (int32
// [rows], drafts that each row keeps).
// Tile: a unit of a row.
#include "state.h"

namespace galley {
namespace {

class StateRewind final : public StateOp {
 public:
  explicit StateRewind(const Args& a)
      : StateOp(StateCache(a, a.size("units"), a.size("unit_size"))),
        kept_(a.column<int32_t>("num_kept")) {}

  void run(const Step& step, int64_t begin, int64_t end, int) override {
    for (int64_t tile = begin; tile < end; tile++) {
      const auto row = static_cast<int32_t>(tile % step.rows);
      state_.rewind(step, row, tile / step.rows, kept_[row]);
    }
  }

 private:
  ColumnOf<int32_t> kept_;
};

GALLEY_OP(state_rewind, StateRewind);

}  // namespace
}  // namespace galley
