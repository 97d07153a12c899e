"""Rewrites of a recorded program: an open set, one function a file, applied in order.

A pass takes the list of nodes and returns another that computes the same bits with less work. It
looks at neighbours only and asks nothing of the model. `LOWERING` is needed, `FUSIONS` are not.
"""

from collections.abc import Callable, Sequence

from galley.kernels.passes.accumulate import accumulate_linear
from galley.kernels.passes.add_norm import fuse_add_norm
from galley.kernels.passes.epilogue import fuse_silu_epilogue
from galley.kernels.passes.lower_rotary import lower_rotary
from galley.kernels.passes.quantize import fuse_quantize
from galley.kernels.program import Node

Pass = Callable[[list[Node]], list[Node]]

LOWERING: tuple[Pass, ...] = (lower_rotary,)
#: In this order: an add that a linear layer has swallowed is not there for the norm, and what a
#: fused operation puts out is rounded last.
FUSIONS: tuple[Pass, ...] = (
    accumulate_linear,
    fuse_add_norm,
    fuse_silu_epilogue,
    fuse_quantize,
)


def apply(nodes: list[Node], passes: Sequence[Pass]) -> list[Node]:
    for rewrite in passes:
        nodes = rewrite(nodes)
    return nodes


__all__ = ["FUSIONS", "LOWERING", "Pass", "apply"]
