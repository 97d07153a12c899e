"""The recurrence of RWKV-7."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op
from galley.kernels.ops.gated_delta_rule import delta_state
from galley.kernels.ops.state_op import STATE_INTS, STATE_POINTERS, stride_ints, strides
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import ForwardContext, StateLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps

_VALUES = ("r", "w", "k", "v", "a", "b")


class Wkv7(Op):
    name = "wkv7"
    native = NativeOp(
        "wkv7",
        pointers={**dict.fromkeys(_VALUES, "f32"), **STATE_POINTERS, "out": "f32"},
        ints={"heads": "", "size": "columns of a head", **stride_ints(_VALUES), **STATE_INTS},
        columns=("block_table",),
        arguments=strides,
        rows=dict.fromkeys((*_VALUES, "out"), TOKENS),
    )

    def __call__(
        self,
        r: Value,
        w: Value,
        k: Value,
        v: Value,
        a: Value,
        b: Value,
        heads: int,
        state: StateLayer,
        ctx: ForwardContext,
    ) -> Value:
        """[T, heads * N]: per head, with S [N, N] from token to token,

        S = diag(w) S + k vᵀ + b (aᵀ S)
        y = rᵀ S

        Args:
            r, w, k, v, a, b: [T, heads * N]; w is the decay itself.
            state: of `delta_state(heads, N, N)`.
        """
        columns = r.shape[-1]
        self.require(columns % heads == 0, f"{columns} columns in {heads} heads")
        for value in (w, k, v, a, b):
            self.require_columns(value, columns)
        shape = delta_state(heads, columns // heads, columns // heads)
        self.require((state.units, state.unit_size) == shape, f"{shape} in {state}")
        return self.run(r, w, k, v, a, b, heads, state, ctx)

    def reference(
        self,
        ref: ReferenceOps,
        r: Tensor,
        w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        heads: int,
        state: StateLayer,
        ctx: ReferenceContext,
    ) -> Tensor:
        import torch

        dtype = r.dtype
        r, w, k, v, a, b = (x.float().unflatten(-1, (heads, -1)) for x in (r, w, k, v, a, b))
        y = torch.empty_like(r)
        for tokens, kept in ctx.states(state):
            s = kept.unflatten(1, (r.shape[-1], -1))[..., : r.shape[-1]]
            for t in range(tokens.start, tokens.stop):
                held = (s * a[t, ..., None]).sum(1)
                s *= w[t, ..., None]
                s += k[t, ..., None] * v[t, :, None]
                s += b[t, ..., None] * held[:, None]
                y[t] = (s * r[t, ..., None]).sum(1)
        return y.flatten(1).to(dtype)

    def record(
        self,
        recorder: Recorder,
        r: Symbol,
        w: Symbol,
        k: Symbol,
        v: Symbol,
        a: Symbol,
        b: Symbol,
        heads: int,
        state: StateLayer,
        ctx: ForwardContext,
    ) -> Symbol:
        out = Symbol.new(TOKENS, r.columns)
        values = dict(zip(_VALUES, (r, w, k, v, a, b), strict=True))
        ints = {"heads": heads, "size": r.columns // heads}
        recorder.add(Node("wkv7", values, {"out": out}, ints=ints, layer=state))
        return out


wkv7: Wkv7 = Wkv7()
