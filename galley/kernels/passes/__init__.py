"""Fusions: rewrites of a recorded program, an open set, one function a file, applied in order.

A pass takes the list of nodes and returns another that computes the same bits with less work. It
looks at neighbouring nodes only and knows no model. Every pass is optional: a program runs without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from galley.kernels.passes.accumulate import accumulate_linear
from galley.kernels.passes.adapters import fuse_adapters
from galley.kernels.passes.add_norm import fuse_add_norm
from galley.kernels.passes.epilogue import fuse_epilogue
from galley.kernels.passes.quantize import fuse_quantize
from galley.kernels.passes.rope_kv import fuse_rope_kv
from galley.kernels.passes.round_qkv import round_qkv
from galley.kernels.program import Node
from galley.kernels.verify import verify

Pass = Callable[[list[Node]], list[Node]]

#: In this order: what adapters add belongs to the layer whose result is fused further, an add that
#: is part of a linear layer cannot be fused to the norm, what a fused op stores is rounded last.
FUSIONS: tuple[Pass, ...] = (
    fuse_rope_kv,
    fuse_adapters,
    accumulate_linear,
    fuse_add_norm,
    fuse_epilogue,
    fuse_quantize,
    round_qkv,
)


def apply(nodes: list[Node], passes: Sequence[Pass]) -> list[Node]:
    """The program after `passes`, verified."""
    for rewrite in passes:
        nodes = rewrite(nodes)
    verify(nodes)
    return nodes


__all__ = ["FUSIONS", "Pass", "apply"]
