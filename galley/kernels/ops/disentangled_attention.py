"""Attention of DeBERTa, whose scores have terms of one token's content and the other's distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, ForwardContext, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    whole(output(node))
    return {f"{name}_stride": node.reads[name].buffer.columns for name in ("q", "k", "v")}


class DisentangledAttention(Op):
    name = "disentangled_attention"
    native = NativeOp(
        "disentangled_attention",
        pointers={
            "q": "f32",
            "k": "f32",
            "v": "f32",
            "keys?": "f32 [distances][heads * head_dim], multiplied with queries",
            "queries?": "f32 [distances][heads * head_dim], multiplied with keys",
            "rows": "int32 [2 reach + 1], the row of both by distance from -reach to reach",
            "out": "f32",
        },
        ints={
            "heads": "",
            "head_dim": "",
            "reach": "further distances are as this one",
            "q_stride": "",
            "k_stride": "",
            "v_stride": "",
        },
        floats={"scale": ""},
        arguments=_arguments,
        rows=dict.fromkeys(("q", "k", "v", "out"), TOKENS),
    )

    def __call__(
        self,
        q: Value,
        k: Value,
        v: Value,
        heads: int,
        scale: float,
        rows: NDArray[np.int32],
        keys: Constant | None,
        queries: Constant | None,
        ctx: ForwardContext,
    ) -> Value:
        """[T, heads * D]: attention of each sequence, all of whose tokens are in the step.

        score(i, j) = scale * (q_i k_j + q_i keys[r] + k_j queries[r]), r = rows[i - j + reach]

        Args:
            q, k, v: [T, heads * D].
            rows: [2 reach + 1] row of `keys` and `queries` by distance, from -reach to reach.
            keys, queries: [distances, heads * D]; None = there is no such term.
        """
        self.require(q.shape[-1] % heads == 0, f"{q.shape[-1]} columns for {heads} heads")
        self.require(len(rows) % 2 == 1, f"rows of {len(rows)} distances")
        for value in (k, v):
            self.require_columns(value, q.shape[-1])
        for table in (keys, queries):
            if table is not None:
                self.require(table.shape[1] == q.shape[-1], f"a table of {tuple(table.shape)}")
        return self.run(q, k, v, heads, scale, rows, keys, queries, ctx)

    def reference(
        self,
        ref: ReferenceOps,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        scale: float,
        rows: NDArray[np.int32],
        keys: Tensor | None,
        queries: Tensor | None,
        ctx: ReferenceContext,
    ) -> Tensor:
        import torch

        out, reach = torch.empty_like(q), len(rows) // 2
        row_of = torch.from_numpy(rows).long()
        for start, stop in zip(ctx.query_start[:-1], ctx.query_start[1:], strict=True):
            shape = (stop - start, heads, -1)
            qs, ks, vs = (x[start:stop].float().reshape(shape) for x in (q, k, v))
            place = torch.arange(stop - start)
            row = row_of[(place[:, None] - place).clamp(-reach, reach) + reach]
            scores = torch.einsum("ihd,jhd->hij", qs, ks)
            if keys is not None:
                table = keys.float().unflatten(1, (heads, -1))[row]
                scores = scores + torch.einsum("ihd,ijhd->hij", qs, table)
            if queries is not None:
                table = queries.float().unflatten(1, (heads, -1))[row]
                scores = scores + torch.einsum("jhd,ijhd->hij", ks, table)
            weights = (scores * scale).softmax(-1)
            out[start:stop] = torch.einsum("hij,jhd->ihd", weights, vs).flatten(1).to(out.dtype)
        return out

    def record(
        self,
        recorder: Recorder,
        q: Symbol,
        k: Symbol,
        v: Symbol,
        heads: int,
        scale: float,
        rows: NDArray[np.int32],
        keys: NDArray[np.float32] | None,
        queries: NDArray[np.float32] | None,
        ctx: ForwardContext,
    ) -> Symbol:
        out = Symbol.new(q.buffer.rows, q.columns)
        given = {"rows": rows, "keys": keys, "queries": queries}
        ints = {"heads": heads, "head_dim": q.columns // heads, "reach": len(rows) // 2}
        recorder.add(
            Node(
                "disentangled_attention",
                {"q": q, "k": k, "v": v},
                {"out": out},
                constants={name: each for name, each in given.items() if each is not None},
                ints=ints,
                floats={"scale": scale},
            )
        )
        return out


disentangled_attention: DisentangledAttention = DisentangledAttention()
