"""linear, add  →  linear that adds to the residual stream as it stores."""

from __future__ import annotations

from msgspec.structs import replace

from galley.kernels.passes.adapters import LINEARS
from galley.kernels.passes.neighbours import Readers, fuse_neighbours
from galley.kernels.program import Node


def accumulate_linear(nodes: list[Node]) -> list[Node]:
    return fuse_neighbours(nodes, _fuse)


def _fuse(linear: Node, add: Node, readers: Readers) -> Node | None:
    if linear.op not in LINEARS or add.op != "add" or "out" not in linear.writes:
        return None
    y, x = add.reads["y"], add.updates["x"]
    out = linear.writes["out"]
    # All of y must come from this layer, and the stream may not be what the layer reads.
    if out.buffer is not y.buffer or not out.is_whole or not y.is_whole or readers[y.buffer] != 1:
        return None
    if x.buffer is linear.reads["x"].buffer:
        return None
    return replace(linear, writes={}, updates={"out": x}).with_ints(accumulate=1)
