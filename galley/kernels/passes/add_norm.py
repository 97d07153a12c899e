"""add, norm of the sum  →  norm that adds first and writes the sum back."""

from __future__ import annotations

from msgspec.structs import replace

from galley.kernels.passes.neighbours import Readers, fuse_neighbours
from galley.kernels.program import Node

NORMS = ("rms_norm", "layer_norm")


def fuse_add_norm(nodes: list[Node]) -> list[Node]:
    return fuse_neighbours(nodes, _fuse)


def _fuse(add: Node, norm: Node, readers: Readers) -> Node | None:
    if add.op != "add" or norm.op not in NORMS or "x" not in norm.reads:
        return None
    x = add.updates["x"]
    if norm.reads["x"].buffer is not x.buffer or not norm.reads["x"].is_whole:
        return None
    return replace(norm, reads={"add": add.reads["y"]}, updates={"x": x})
