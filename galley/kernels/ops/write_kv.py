"""New keys and values into the KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op
from galley.kernels.ops.kv_cache import (
    KV_COLUMNS,
    KV_FLOATS,
    KV_INTS,
    KV_POINTER,
    kv_floats,
    kv_ints,
    stored,
)
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import ForwardContext, KVLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    k, v, layer = node.reads["k"], node.reads["v"], node.layer
    assert isinstance(layer, KVLayer)
    return {
        "kv_heads": layer.kv_heads,
        "head_dim": layer.head_dim,
        "k_kind": int(k.kind),
        "v_kind": int(v.kind),
        "k_stride": k.buffer.columns,
        "v_stride": v.buffer.columns,
    }


class WriteKV(Op):
    name = "write_kv"
    native = NativeOp(
        "write_kv",
        pointers={"k": "", "v": "", **KV_POINTER},
        ints={
            **KV_INTS,
            "k_kind": "f32, bf16",
            "v_kind": "f32, bf16",
            "k_stride?": "default kv_heads * head_dim",
            "v_stride?": "default kv_heads * head_dim",
        },
        floats=KV_FLOATS,
        columns=KV_COLUMNS,
        arguments=_arguments,
        rows={"k": TOKENS, "v": TOKENS},
    )

    def __call__(self, k: Value, v: Value, layer: KVLayer, ctx: ForwardContext) -> None:
        """Put the step's k and v [T, Hkv * D] into the cache at their tokens' positions."""
        self.require_columns(k, layer.kv_heads * layer.head_dim)
        self.require_columns(v, layer.kv_heads * layer.head_dim)
        self.run(k, v, layer, ctx)

    def reference(
        self, ref: ReferenceOps, k: Tensor, v: Tensor, layer: KVLayer, ctx: ReferenceContext
    ) -> None:
        shape = (-1, layer.kv_heads, layer.head_dim)
        parts = ((ctx.cache.k, k, layer.k_scale), (ctx.cache.v, v, layer.v_scale))
        numbers = ctx.cache.numbers.of(layer.number)
        for cache, new, scale in parts:
            flat = cache[layer.index].view(shape)
            kept = stored(new.reshape(shape), numbers, scale)
            for row, computed in enumerate(ctx.computed):
                start, stop = ctx.query_start[row], ctx.query_start[row + 1]
                slots = ctx.row_slots(layer, row, computed + stop - start)[computed:]
                flat[slots] = kept[start:stop]

    def record(
        self, recorder: Recorder, k: Symbol, v: Symbol, layer: KVLayer, ctx: ForwardContext
    ) -> None:
        ints, floats = kv_ints(recorder, layer), kv_floats(recorder, layer)
        recorder.add(Node("write_kv", {"k": k, "v": v}, ints=ints, floats=floats, layer=layer))


write_kv: WriteKV = WriteKV()
