"""linear, then the activation of its result  →  linear that stores what the activation gives.

The activation is act(gate) * up of gate and up in turn, or a function of each number.
"""

from __future__ import annotations

from msgspec.structs import replace

from galley.kernels._native import Epilogue
from galley.kernels.ops.elementwise import PLAIN_FUNCTIONS
from galley.kernels.passes.adapters import LINEARS
from galley.kernels.passes.neighbours import Readers, fuse_neighbours
from galley.kernels.program import Node

_EPILOGUES = {"silu_and_mul": Epilogue.silu_mul, "gelu_and_mul": Epilogue.gelu_mul}


def fuse_epilogue(nodes: list[Node]) -> list[Node]:
    return fuse_neighbours(nodes, _fuse)


def _fuse(linear: Node, activation: Node, readers: Readers) -> Node | None:
    ints = _ints(activation)
    if linear.op not in LINEARS or not ints:
        return None
    x, out = activation.reads["x"], linear.writes.get("out")
    if out is None or out.buffer is not x.buffer or not out.is_whole:
        return None
    if readers[x.buffer] != 1:
        return None
    return replace(linear, writes={"out": activation.writes["out"]}).with_ints(**ints)


def _ints(activation: Node) -> dict[str, int]:
    """The arguments of linear that stand for an activation; none where it has no such."""
    if activation.op in _EPILOGUES and activation.ints.get("interleaved"):
        return {"epilogue": int(_EPILOGUES[activation.op])}
    function = activation.ints.get("function", 0)
    if activation.op == "elementwise" and function < PLAIN_FUNCTIONS:
        return {"function": function}
    return {}
