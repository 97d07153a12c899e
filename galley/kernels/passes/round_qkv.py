"""linear of q, k and v, write_kv, quantize of q, attention  →  linear that stores bf16, write_kv,
attention.

Nothing reads more of the linear layer's result than bf16 holds. Where keys are rotated, rope_kv
rounds them.
"""

from __future__ import annotations

from msgspec.structs import replace

from galley.kernels.passes.adapters import LINEARS
from galley.kernels.passes.neighbours import Readers, count_readers
from galley.kernels.program import Kind, Node, Symbol
from galley.kv.format import KVFormat


def round_qkv(nodes: list[Node]) -> list[Node]:
    readers = count_readers(nodes)
    rounded: list[Node] = []
    for node in nodes:
        run = _rounded([*rounded[-3:], node], readers)
        if run is None:
            rounded.append(node)
        else:
            rounded[-3:] = run
    return rounded


def _rounded(nodes: list[Node], readers: Readers) -> list[Node] | None:
    if [node.op for node in nodes[1:]] != ["write_kv", "quantize", "attention"]:
        return None
    linear, write, quantize, attention = nodes
    if linear.op not in LINEARS:
        return None
    qkv, q = linear.writes.get("out"), quantize.writes["out"]
    if qkv is None or qkv.kind != Kind.f32 or not qkv.is_whole or readers[qkv.buffer] != 3:
        return None
    parts = {"k": write.reads["k"], "v": write.reads["v"], "q": quantize.reads["x"]}
    if any(part.buffer is not qkv.buffer for part in parts.values()):
        return None
    if attention.reads["q"] is not q or readers[q.buffer] != 1:
        return None
    if q.kind != Kind.bf16 or write.ints["kv_kind"] != KVFormat("bfloat16").number:
        return None
    out = Symbol.new(qkv.buffer.rows, qkv.columns, Kind.bf16)
    k, v, q = (Symbol(out.buffer, part.columns, part.start) for part in parts.values())
    return [
        replace(linear, writes={"out": out}),
        replace(write, reads={"k": k, "v": v}),
        replace(attention, reads={**attention.reads, "q": q}),
    ]
