"""Attention over a latent KV cache (multi-head latent attention, absorbed)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.attention import Attention, attend, visible_positions
from galley.kernels.ops.definition import Op, whole
from galley.kernels.ops.kv_cache import kv_floats, kv_ints, query_kind
from galley.kernels.program import Node, Symbol
from galley.kernels.values import ForwardContext, KVLayer, LatentLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps


class LatentAttention(Op):
    name = "latent_attention"
    native = Attention.native

    def __call__(
        self, q: Value, q_rope: Value, layer: LatentLayer, scale: float, ctx: ForwardContext
    ) -> Value:
        """[T, Hq * rank]: each head's weighted sum of latents, this step's included.

        All heads attend to one key per token, latent | rotated part; the value is the latent.

        Args:
            q: [T, Hq * rank], in the space of the latents.
            q_rope: [T, Hq * rope_dim], rotated.
        """
        heads = q.shape[-1] // layer.rank
        self.require_columns(q, heads * layer.rank)
        self.require_columns(q_rope, heads * layer.rope_dim)
        return self.run(q, q_rope, layer, scale, ctx)

    def reference(
        self,
        ref: ReferenceOps,
        q: Tensor,
        q_rope: Tensor,
        layer: LatentLayer,
        scale: float,
        ctx: ReferenceContext,
    ) -> Tensor:
        import torch

        keys = ctx.cache.k[layer.index].view(-1, 1, layer.head_dim)
        parts = (q.unflatten(-1, (-1, layer.rank)), q_rope.unflatten(-1, (-1, layer.rope_dim)))
        queries = torch.cat(parts, dim=-1).flatten(-2)
        out, causal = torch.empty_like(q), KVLayer(layer.index, 1, layer.head_dim)
        for row, computed in enumerate(ctx.computed):
            start, stop = ctx.query_start[row], ctx.query_start[row + 1]
            length = computed + stop - start
            known = keys[ctx.row_slots(layer, row, length)]
            visible = visible_positions(computed, length, causal)
            values = known[..., : layer.rank]
            out[start:stop] = attend(queries[start:stop], known, values, visible, scale)
        return out

    def record(
        self,
        recorder: Recorder,
        q: Symbol,
        q_rope: Symbol,
        layer: LatentLayer,
        scale: float,
        ctx: ForwardContext,
    ) -> Symbol:
        q, q_rope = (whole(recorder.rounded(x, query_kind(recorder, layer))) for x in (q, q_rope))
        out = Symbol.new(q.buffer.rows, q.columns)
        ints = {
            "heads": q.columns // layer.rank,
            "kv_heads": 1,
            "head_dim": layer.head_dim,
            "value_dim": layer.rank,
            **kv_ints(recorder, layer),
        }
        reads = {"q": q, "q_rope": q_rope}
        floats = {"scale": scale, **kv_floats(recorder, layer)}
        recorder.add(Node("attention", reads, {"out": out}, ints=ints, floats=floats, layer=layer))
        return out


latent_attention: LatentAttention = LatentAttention()
