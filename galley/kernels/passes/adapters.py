"""linear, adapter_shrink, adapter_expand of its result  →  adapter_shrink, adapted_linear."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from galley.kernels.adapters import PANEL
from galley.kernels.program import Node

#: Ops that later passes fuse with what is done to their result.
LINEARS = ("linear", "adapted_linear")


def fuse_adapters(nodes: list[Node]) -> list[Node]:
    fused: list[Node] = []
    for node in nodes:
        both = _fuse(fused[-2], fused[-1], node) if len(fused) > 1 else None
        if both is None:
            fused.append(node)
        else:
            fused[-2:] = both
    return fused


def _fuse(linear: Node, shrink: Node, expand: Node) -> tuple[Node, Node] | None:
    if (linear.op, shrink.op, expand.op) != ("linear", "adapter_shrink", "adapter_expand"):
        return None
    y, out = linear.writes["out"], expand.updates["out"]
    if y.buffer is not out.buffer or not y.is_whole or not out.is_whole:
        return None
    parts = expand.constants["parts"]
    assert isinstance(parts, np.ndarray)
    if (parts[:, 2:] % PANEL).any():
        return None
    reads = {**linear.reads, "low": expand.reads["x"]}
    constants = {**linear.constants, **expand.constants}
    return shrink, replace(linear, op="adapted_linear", reads=reads, constants=constants)
