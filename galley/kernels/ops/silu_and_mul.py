"""The gated activation of the feed-forward block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.gated_activation import GatedActivation, gated_native

if TYPE_CHECKING:
    from torch import Tensor


class SiluAndMul(GatedActivation):
    name = "silu_and_mul"
    native = gated_native("silu_and_mul")

    def activate(self, gate: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.silu(gate)


silu_and_mul: SiluAndMul = SiluAndMul()
