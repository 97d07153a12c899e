"""New keys into a latent cache."""

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
from galley.kernels.values import ForwardContext, LatentLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    layer = node.layer
    assert isinstance(layer, LatentLayer)
    return {
        "kv_heads": 1,
        "head_dim": layer.head_dim,
        "latent_dim": layer.rank,
        "latent_stride": node.reads["latent"].buffer.columns,
        "rope_stride": node.reads["rope"].buffer.columns,
    }


class WriteLatent(Op):
    name = "write_latent"
    native = NativeOp(
        "write_latent",
        pointers={"latent": "f32", "rope": "f32", **KV_POINTER},
        ints={
            **KV_INTS,
            "kv_heads": "1",
            "latent_dim": "",
            "latent_stride?": "default latent_dim",
            "rope_stride?": "default head_dim - latent_dim",
        },
        floats=KV_FLOATS,
        columns=KV_COLUMNS,
        arguments=_arguments,
        rows={"latent": TOKENS, "rope": TOKENS},
    )

    def __call__(self, latent: Value, rope: Value, layer: LatentLayer, ctx: ForwardContext) -> None:
        """Put the step's latents [T, rank] and rotated parts [T, rope_dim] of keys into the cache
        at their tokens' positions."""
        self.require_columns(latent, layer.rank)
        self.require_columns(rope, layer.rope_dim)
        self.run(latent, rope, layer, ctx)

    def reference(
        self,
        ref: ReferenceOps,
        latent: Tensor,
        rope: Tensor,
        layer: LatentLayer,
        ctx: ReferenceContext,
    ) -> None:
        import torch

        flat = ctx.cache.k[layer.index].view(-1, layer.head_dim)
        numbers = ctx.cache.numbers.of(layer.number)
        keys = stored(torch.cat([latent, rope], dim=-1), numbers, layer.k_scale)
        for row, computed in enumerate(ctx.computed):
            start, stop = ctx.query_start[row], ctx.query_start[row + 1]
            slots = ctx.row_slots(layer, row, computed + stop - start)[computed:]
            flat[slots] = keys[start:stop]

    def record(
        self,
        recorder: Recorder,
        latent: Symbol,
        rope: Symbol,
        layer: LatentLayer,
        ctx: ForwardContext,
    ) -> None:
        ints, floats = kv_ints(recorder, layer), kv_floats(recorder, layer)
        reads = {"latent": latent, "rope": rope}
        recorder.add(Node("write_latent", reads, ints=ints, floats=floats, layer=layer))


write_latent: WriteLatent = WriteLatent()
