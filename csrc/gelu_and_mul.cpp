// Op `gelu_and_mul`: out = gelu(gate) * up, with the tanh form of GELU. Pointers: x (f32 [rows][2n]),
// out. Ints: n, rows, out_kind, interleaved? (0 = gate then up, 1 = interleaved in runs of 16 columns).
// Tile: 4 rows.
#include "gelu_and_mul_kernel.h"

#include "gated_activation.h"

namespace galley {
namespace {

class GeluAndMul final : public GatedActivation {
 public:
  explicit GeluAndMul(const Args& a) : GatedActivation(a, GALLEY_PICK(gelu_mul_row)) {}
};

GALLEY_OP(gelu_and_mul, GeluAndMul);

}  // namespace
}  // namespace galley
