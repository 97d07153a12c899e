"""an operation, quantize of its result  →  the operation that stores the rounded rows.

A layer norm stores both where other nodes read its result.
"""

from __future__ import annotations

from msgspec.structs import replace

from galley.kernels.ops import native_op
from galley.kernels.passes.neighbours import Readers, fuse_neighbours
from galley.kernels.program import Kind, Node


def fuse_quantize(nodes: list[Node]) -> list[Node]:
    return fuse_neighbours(nodes, _fuse)


def _fuse(node: Node, quantize: Node, readers: Readers) -> Node | None:
    if quantize.op != "quantize" or "out" not in node.writes:
        return None
    x, rounded, out = quantize.reads["x"], quantize.writes["out"], node.writes["out"]
    native = native_op(node.op)
    if native is None or rounded.kind not in native.stores:
        return None
    if out.buffer is not x.buffer or not out.is_whole:
        return None
    if readers[x.buffer] == 1:
        return replace(node, writes={**node.writes, "out": rounded})
    if "rounded?" not in native.pointers or "rounded" in node.writes or out.kind != Kind.f32:
        return None
    return replace(node, writes={**node.writes, "rounded": rounded})
