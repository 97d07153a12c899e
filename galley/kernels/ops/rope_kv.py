"""Head norms, rotation and the write into the KV cache in one op. Native only."""

from __future__ import annotations

from galley.kernels.ops.definition import NativeOp, whole
from galley.kernels.ops.kv_cache import KV_COLUMNS, KV_FLOATS, KV_INTS, KV_POINTER
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
        **KV_POINTER,
    },
    ints={
        "heads": "",
        **KV_INTS,
        "rot_dim": "",
        "style?": "0 halves, 1 interleaved",
        "q_kind": "",
    },
    floats={"eps?": "", **KV_FLOATS},
    columns=("positions", *KV_COLUMNS),
    arguments=_arguments,
    rows={"qkv": TOKENS, "q_out": TOKENS},
)
