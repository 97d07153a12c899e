"""[head_norm of q, head_norm of k,] rotary, write_kv  →  rope_kv, the operation that kernels have.

All of them read one buffer of a row's queries, keys and values,

    [ q: heads * D | k: kv_heads * D | v: kv_heads * D ]

and rope_kv reads it once. Other arrangements have no kernel: they are a ValueError.
"""

from __future__ import annotations

from galley.kernels.program import Constant, Node, Symbol


def lower_rotary(nodes: list[Node]) -> list[Node]:
    by_output = {
        value: node
        for node in nodes
        if node.op in ("rotary", "head_norm")
        for value in node.writes.values()
    }
    lowered = [
        _rope_kv(node, by_output) if node.op == "write_kv" else node
        for node in nodes
        if node.op not in ("rotary", "head_norm")
    ]
    return lowered


def _rope_kv(write: Node, by_output: dict[Symbol, Node]) -> Node:
    rotary = by_output.get(write.reads["k"])
    if rotary is None or rotary.op != "rotary" or write.layer is None:
        raise ValueError("write_kv: keys that were not rotated have no native operation")
    layer = write.layer
    q, k, v = rotary.reads["q"], rotary.reads["k"], write.reads["v"]
    constants: dict[str, Constant] = dict(rotary.constants)
    floats: dict[str, float] = {}
    if (q_norm := by_output.get(q)) and (k_norm := by_output.get(k)):
        constants["q_weight"] = q_norm.constants["weight"]
        constants["k_weight"] = k_norm.constants["weight"]
        floats = dict(q_norm.floats)
        if q_norm.floats != k_norm.floats:
            raise ValueError("rope_kv: q and k are normalised with different eps")
        q, k = q_norm.reads["x"], k_norm.reads["x"]
    qkv = q.buffer
    side_by_side = (
        q.start == 0
        and k.start == q.columns
        and v.start == q.columns + k.columns
        and v.start + v.columns == qkv.columns
    )
    if k.buffer is not qkv or v.buffer is not qkv or not side_by_side:
        raise ValueError("rope_kv: q, k and v must be one value, split in this order")
    head_dim = layer.head_dim
    return Node(
        "rope_kv",
        reads={"qkv": Symbol(qkv, qkv.columns)},
        writes={"q_out": rotary.writes["q_out"]},
        constants=constants,
        ints={
            "heads": q.columns // head_dim,
            "kv_heads": k.columns // head_dim,
            "head_dim": head_dim,
            "rot_dim": rotary.ints["rot_dim"],
            "kv_kind": int(rotary.writes["k_out"].kind),
        },
        floats=floats,
        layer=layer,
    )
