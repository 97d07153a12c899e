"""linear of interleaved gate and up, silu_and_mul  →  linear that stores silu(gate) * up."""

from __future__ import annotations

from msgspec.structs import replace

from galley.kernels._native import Epilogue
from galley.kernels.passes.neighbours import Readers, fuse_neighbours
from galley.kernels.program import Node


def fuse_silu_epilogue(nodes: list[Node]) -> list[Node]:
    return fuse_neighbours(nodes, _fuse)


def _fuse(linear: Node, silu: Node, readers: Readers) -> Node | None:
    if linear.op != "linear" or silu.op != "silu_and_mul" or not silu.ints.get("interleaved"):
        return None
    gate_up, out = silu.reads["x"], linear.writes.get("out")
    if out is None or out.buffer is not gate_up.buffer or not out.is_whole:
        return None
    if readers[gate_up.buffer] != 1:
        return None
    return replace(linear, writes={"out": silu.writes["out"]}).with_ints(
        epilogue=int(Epilogue.silu_mul)
    )
