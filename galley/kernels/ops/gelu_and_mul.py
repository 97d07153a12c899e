"""The gated activation of Gemma's feed-forward block: GELU in its tanh form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.gated_activation import GatedActivation, gated_native

if TYPE_CHECKING:
    from torch import Tensor


class GeluAndMul(GatedActivation):
    name = "gelu_and_mul"
    native = gated_native("gelu_and_mul")

    def activate(self, gate: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.gelu(gate, approximate="tanh")


gelu_and_mul: GeluAndMul = GeluAndMul()
