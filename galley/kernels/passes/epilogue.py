"""linear of gate and up in turn, then their activation  →  linear that stores act(gate) * up."""

from __future__ import annotations

from msgspec.structs import replace

from galley.kernels._native import Epilogue
from galley.kernels.passes.adapters import LINEARS
from galley.kernels.passes.neighbours import Readers, fuse_neighbours
from galley.kernels.program import Node

_EPILOGUES = {"silu_and_mul": Epilogue.silu_mul, "gelu_and_mul": Epilogue.gelu_mul}


def fuse_gated_epilogue(nodes: list[Node]) -> list[Node]:
    return fuse_neighbours(nodes, _fuse)


def _fuse(linear: Node, activation: Node, readers: Readers) -> Node | None:
    epilogue = _EPILOGUES.get(activation.op)
    if linear.op not in LINEARS or epilogue is None or not activation.ints.get("interleaved"):
        return None
    gate_up, out = activation.reads["x"], linear.writes.get("out")
    if out is None or out.buffer is not gate_up.buffer or not out.is_whole:
        return None
    if readers[gate_up.buffer] != 1:
        return None
    return replace(linear, writes={"out": activation.writes["out"]}).with_ints(
        epilogue=int(epilogue)
    )
