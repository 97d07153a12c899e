"""Head norms, rotation and the write into the KV cache in one op. Native only."""

from __future__ import annotations

from galley.kernels.ops.definition import NativeOp, whole
from galley.kernels.program import TOKENS, Node


def _arguments(node: Node) -> dict[str, int]:
    return {"q_kind": int(whole(node.writes["q_out"]).kind)}


ROPE_KV = NativeOp(
    "rope_kv",
    pointers={
        "qkv": "f32",
        "table": "f32 [positions][rot_dim], cos half then sin half",
        "q_weight?": "f32, head norm",
        "k_weight?": "f32, head norm",
        "q_out": "",
        "kv": "this layer's base",
    },
    ints={
        "heads": "",
        "kv_heads": "",
        "head_dim": "",
        "rot_dim": "",
        "style?": "0 halves, 1 interleaved",
        "q_kind": "",
        "kv_kind": "",
        "kv_block_stride": "bytes",
        "block_size": "tokens",
    },
    floats={"eps?": ""},
    columns=("positions", "block_table"),
    arguments=_arguments,
    rows={"qkv": TOKENS, "q_out": TOKENS},
)
