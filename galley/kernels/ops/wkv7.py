"""The recurrence of RWKV-7, with what surrounds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from galley.kernels.ops.definition import Op
from galley.kernels.ops.gated_delta_rule import delta_state, numbers_of
from galley.kernels.ops.state_op import given, state_native
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, ForwardContext, StateLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps


class Wkv7Parameters(msgspec.Struct, frozen=True):
    """Learned constants, [heads * N] each, and the epsilon of the norm."""

    k_k: Constant
    k_a: Constant
    r_k: Constant
    weight: Constant
    bias: Constant
    eps: float
    heads: int


class Wkv7(Op):
    name = "wkv7"
    native = state_native(
        "wkv7",
        values=["r", "w", "k", "v", "a", "first?", "mix?"],
        constants=dict.fromkeys(("k_k", "k_a", "r_k", "weight", "bias"), "f32 [heads * size]"),
        ints={"heads": "", "size": "columns of a head"},
        floats={"eps": "added to the variance"},
    )

    def __call__(
        self,
        r: Value,
        w: Value,
        k: Value,
        v: Value,
        a: Value,
        parameters: Wkv7Parameters,
        state: StateLayer,
        ctx: ForwardContext,
        first: Value | None = None,
        mix: Value | None = None,
    ) -> Value:
        """[T, heads * N]: per head, with S [N, N] from token to token, and sigmoids of a and mix,

        d = exp(-exp(-0.5) * sigmoid(w)); u = k * k_k, divided by its length
        k = k * (1 + (a - 1) * k_a); v = v + (first - v) * mix
        S = diag(d) S + k vᵀ - (u * a) (uᵀ S)
        y = norm(rᵀ S) * weight + bias + sum(r * k * r_k) v

        Native code keeps what tokens add to S beside it, until it has eight terms
        (csrc/delta_rule.h), in an order that does not depend on chunks.

        Args:
            r, w, k, v, a: [T, heads * N].
            first, mix: the same; None in the first layer, which keeps its v.
            state: of `delta_state(heads, N, N)`.
        """
        columns, heads = r.shape[-1], parameters.heads
        self.require(columns % heads == 0, f"{columns} columns in {heads} heads")
        self.require((first is None) == (mix is None), "first without mix, or mix without first")
        for value in (w, k, v, a, first, mix):
            if value is not None:
                self.require_columns(value, columns)
        size = columns // heads
        shape = delta_state(heads, size, size)
        self.require((state.units, state.unit_size) == shape, f"{shape} in {state}")
        return self.run(r, w, k, v, a, first, mix, parameters, state, ctx)

    def reference(
        self,
        ref: ReferenceOps,
        r: Tensor,
        w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        first: Tensor | None,
        mix: Tensor | None,
        parameters: Wkv7Parameters,
        state: StateLayer,
        ctx: ReferenceContext,
    ) -> Tensor:
        import torch
        from torch.nn import functional

        p: Any = parameters
        dtype = r.dtype
        r, w, k, v, a = (x.float() for x in (r, w, k, v, a))
        if first is not None and mix is not None:
            v = torch.lerp(v, first.float(), mix.float().sigmoid())
        rate = a.sigmoid()
        decay = torch.exp(w.sigmoid() * -0.6065306597126334)  # -exp(-0.5)
        by_head = (p.heads, -1)
        unit = functional.normalize((k * p.k_k).unflatten(-1, by_head), dim=-1)
        k = k * (1 + (rate - 1) * p.k_a)
        r, k, v, rate, decay = (x.unflatten(-1, by_head) for x in (r, k, v, rate, decay))
        y = torch.empty_like(r)
        for tokens, kept in ctx.states(state):
            s = numbers_of(kept, r.shape[-1], r.shape[-1])
            for t in range(tokens.start, tokens.stop):
                held = (s * unit[t, ..., None]).sum(1)
                s *= decay[t, ..., None]
                s += k[t, ..., None] * v[t, :, None]
                s -= (unit[t] * rate[t])[..., None] * held[:, None]
                y[t] = (s * r[t, ..., None]).sum(1)
        normed = functional.layer_norm(y, y.shape[-1:], eps=p.eps).flatten(1)
        bonus = (r * k * p.r_k.reshape(by_head)).sum(-1, keepdim=True) * v
        return (normed * p.weight + p.bias + bonus.flatten(1)).to(dtype)

    def record(
        self,
        recorder: Recorder,
        r: Symbol,
        w: Symbol,
        k: Symbol,
        v: Symbol,
        a: Symbol,
        first: Symbol | None,
        mix: Symbol | None,
        parameters: Wkv7Parameters,
        state: StateLayer,
        ctx: ForwardContext,
    ) -> Symbol:
        p = parameters
        out = Symbol.new(TOKENS, r.columns)
        recorder.add(
            Node(
                "wkv7",
                given(r=r, w=w, k=k, v=v, a=a, first=first, mix=mix),
                {"out": out},
                constants=given(k_k=p.k_k, k_a=p.k_a, r_k=p.r_k, weight=p.weight, bias=p.bias),
                ints={"heads": p.heads, "size": r.columns // p.heads},
                floats={"eps": p.eps},
                layer=state,
            )
        )
        return out


wkv7: Wkv7 = Wkv7()
