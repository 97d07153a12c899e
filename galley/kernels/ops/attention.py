"""Attention over the KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import WHOLE_ROWS, NativeOp, Op, output, whole
from galley.kernels.ops.kv_cache import (
    KV_COLUMNS,
    KV_FLOATS,
    KV_INTS,
    KV_POINTER,
    kv_floats,
    kv_ints,
    query_kind,
)
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, ForwardContext, KVLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    q, out = node.reads["q"], whole(output(node))
    return {"q_kind": int(q.kind), "q_stride": q.buffer.columns, "out_kind": int(out.kind)}


class Attention(Op):
    name = "attention"
    native = NativeOp(
        "attention",
        pointers={
            "q": "",
            "q_rope?": "the other elements of q's heads, where the cache is latent",
            **KV_POINTER,
            "slopes?": "f32 [heads]: scores fall by so much per token of distance",
            "sinks?": "f32 [heads], a further score of each head",
            "biases?": "f32 [2 reach + 1, heads], added to scores by the token's distance",
            "out": "",
        },
        ints={
            "heads": "",
            **KV_INTS,
            "value_dim?": "the cache is latent: V is the first so many elements of K",
            "q_kind": "f32, bf16",
            "q_stride?": "default heads * head_dim",
            "window?": "0 = full",
            "span?": "0, or tokens of a part of the sequence: a token sees its part alone",
            "reach?": "distances from -reach to reach have biases; further ones, the nearest",
            "causal?": "default 1; 0 = a token sees those behind it, too",
            "out_kind": "",
        },
        floats={"scale": "", "soft_cap?": "0 = none", **KV_FLOATS},
        columns=KV_COLUMNS,
        arguments=_arguments,
        stores=WHOLE_ROWS,
        rows={"q": TOKENS, "q_rope": TOKENS, "out": TOKENS},
    )

    def __call__(
        self,
        q: Value,
        layer: KVLayer,
        scale: float,
        ctx: ForwardContext,
        slopes: Constant | None = None,
        soft_cap: float = 0.0,
        sinks: Constant | None = None,
        biases: Constant | None = None,
    ) -> Value:
        """[T, Hq * D]: attention of q over the cache, this step's K and V included.

        Args:
            slopes: [Hq] a head's scores fall by its slope for each token of distance (ALiBi),
                before the query or behind it.
            soft_cap: scores are soft_cap * tanh(score / soft_cap); 0 = as they are.
            sinks: [Hq] a further score of each head, of a token whose value is 0.
            biases: [2 reach + 1, Hq] added to each head's scores by the distance of the key from
                the query, from -reach to reach; keys further away have the first or the last.
        """
        heads = layer.kv_heads * layer.head_dim
        self.require(q.shape[-1] % heads == 0, f"{q.shape[-1]} columns for {layer}")
        self.require(soft_cap >= 0, f"a soft_cap of {soft_cap}")
        hq = q.shape[-1] // layer.head_dim
        for name, each in (("slopes", slopes), ("sinks", sinks)):
            shape = (hq,) if each is None else tuple(each.shape)
            self.require(shape == (hq,), f"{name} of shape {shape} for {hq} heads")
        if biases is not None:
            rows, columns = biases.shape
            self.require(columns == hq, f"biases of {columns} heads for {hq}")
            self.require(rows % 2 == 1, f"biases of {rows} distances")
        return self.run(q, layer, scale, ctx, slopes, soft_cap, sinks, biases)

    def reference(
        self,
        ref: ReferenceOps,
        q: Tensor,
        layer: KVLayer,
        scale: float,
        ctx: ReferenceContext,
        slopes: Tensor | None,
        soft_cap: float,
        sinks: Tensor | None,
        biases: Tensor | None,
    ) -> Tensor:
        import torch

        shape = (-1, layer.kv_heads, layer.head_dim)
        keys, values = (c[layer.index].view(shape) for c in (ctx.cache.k, ctx.cache.v))
        out = torch.empty_like(q)
        for row, computed in enumerate(ctx.computed):
            start, stop = ctx.query_start[row], ctx.query_start[row + 1]
            length = computed + stop - start
            self.require(
                layer.causal or computed == 0,
                "without causality a sequence is computed in one step",
            )
            slots = ctx.row_slots(layer, row, length)
            visible = visible_positions(computed, length, layer)
            bias = distance_bias(computed, length, slopes, biases)
            k, v = keys[slots], values[slots]
            out[start:stop] = attend(q[start:stop], k, v, visible, scale, bias, soft_cap, sinks)
        return out

    def record(
        self,
        recorder: Recorder,
        q: Symbol,
        layer: KVLayer,
        scale: float,
        ctx: ForwardContext,
        slopes: NDArray[np.float32] | None,
        soft_cap: float,
        sinks: NDArray[np.float32] | None,
        biases: NDArray[np.float32] | None,
    ) -> Symbol:
        q = recorder.rounded(q, query_kind(recorder, layer))
        out = Symbol.new(q.buffer.rows, q.columns)
        ints = {
            "heads": q.columns // layer.head_dim,
            "kv_heads": layer.kv_heads,
            "head_dim": layer.head_dim,
            **kv_ints(recorder, layer),
            "window": 0 if layer.in_parts else layer.window,
            "span": layer.window if layer.in_parts else 0,
            "causal": int(layer.causal),
        }
        floats = {"scale": scale, **kv_floats(recorder, layer)}
        if soft_cap:
            floats["soft_cap"] = soft_cap
        if biases is not None:
            ints["reach"] = biases.shape[0] // 2
        given = {"slopes": slopes, "sinks": sinks, "biases": biases}
        constants = {name: each for name, each in given.items() if each is not None}
        recorder.add(
            Node("attention", {"q": q}, {"out": out}, {}, constants, ints, floats, layer=layer)
        )
        return out


attention: Attention = Attention()


def visible_positions(computed: int, length: int, layer: KVLayer) -> Tensor:
    """[length - computed, length] bool: which keys the queries from `computed` on may see."""
    import torch

    query = torch.arange(computed, length)[:, None]
    key = torch.arange(length)[None]
    if not layer.causal:
        return (query - key).abs() < (layer.window or length)
    visible = key <= query
    if layer.in_parts:
        return visible & (query // layer.window == key // layer.window)
    return visible & (query - key < layer.window) if layer.window else visible


def distance_bias(
    computed: int, length: int, slopes: Tensor | None, biases: Tensor | None
) -> Tensor | None:
    """[Hq, length - computed, length] float32: what is added to the scores of the queries from
    `computed` on; None = nothing."""
    import torch

    distance = torch.arange(length)[None] - torch.arange(computed, length)[:, None]
    bias = None if slopes is None else slopes[:, None, None] * -distance.abs()
    if biases is None:
        return bias
    reach = len(biases) // 2
    table = biases[distance.clamp(-reach, reach) + reach].movedim(-1, 0)
    return table if bias is None else bias + table


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    scale: float,
    bias: Tensor | None = None,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one sequence: q [n, Hq * D], k and v [m, Hkv, D], visible [n, m] → like q.

    Query head h reads KV head h // (Hq / Hkv). Scores and softmax are float32; `bias` [Hq, n, m] is
    added to the scores, `soft_cap` and `sinks` [Hq] are as in the op.
    """
    import torch

    kv_heads, head_dim = k.shape[1:]
    heads = q.unflatten(-1, (kv_heads, -1, head_dim))  # [n, Hkv, Hq / Hkv, D]
    scores = torch.einsum("nhgd,mhd->hgnm", heads.float(), k.float()) * scale
    if soft_cap:
        scores = soft_cap * (scores / soft_cap).tanh()
    if bias is not None:
        scores = scores + bias.unflatten(0, (kv_heads, -1))
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(-1)[..., : len(k)].to(v.dtype)
    return torch.einsum("hgnm,mhd->nhgd", weights, v).flatten(1)
