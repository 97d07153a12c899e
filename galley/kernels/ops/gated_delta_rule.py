"""The gated delta rule: a state that is corrected by what it holds under a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import Op
from galley.kernels.ops.state_op import LANES, padded, state_native
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, ForwardContext, StateLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps

#: Added to the squared length of q and k.
EPS = 1e-6


#: Updates of a state are kept beside it until there are so many of them.
TERMS = 8


def delta_state(heads: int, keys: int, values: int) -> tuple[int, int]:
    """Units and numbers of a unit of the state (csrc/delta_rule.h): [keys, values] of each head, a
    decay of each key, and terms.
    """
    columns, rows = padded(values), padded(keys)
    return heads, (keys + TERMS) * columns + (1 + TERMS) * rows + LANES


def numbers_of(kept: Tensor, keys: int, values: int) -> Tensor:
    """S [heads, keys, values] in a state; terms are not used."""
    return kept[:, : keys * padded(values)].unflatten(1, (keys, -1))[..., :values]


class GatedDeltaRule(Op):
    name = "gated_delta_rule"
    native = state_native(
        "gated_delta_rule",
        values=["q", "k", "v", "alpha", "beta"],
        constants={"a_log": "f32 [heads]", "dt_bias": "f32 [heads], or of each key"},
        ints={
            "heads": "",
            "key_heads": "of q and k",
            "in_turn?": "1 = head h reads key head h % key_heads",
            "by_key?": "1 = a decay of each key: alpha [tokens][heads * keys]",
            "keys": "columns of a head of q and k",
            "values": "columns of a head of v",
        },
        floats={"eps": "added to the squared length of q and k"},
    )

    def __call__(
        self,
        q: Value,
        k: Value,
        v: Value,
        alpha: Value,
        beta: Value,
        a_log: Constant,
        dt_bias: Constant,
        key_heads: int,
        state: StateLayer,
        ctx: ForwardContext,
        in_turn: bool = False,
    ) -> Value:
        """[T, heads * V]: per head, with S [K, V] from token to token, and q and k divided by
        their lengths,

        S = exp(-exp(a_log) * softplus(alpha + dt_bias)) S
        S = S + k (sigmoid(beta) * (v - kᵀ S))
        y = qᵀ S / sqrt(K)

        Native code keeps what tokens add to S beside it, until it has eight terms
        (csrc/delta_rule.h): three multiply-adds per number and token, in an order that does not
        depend on chunks.

        Args:
            q, k: [T, key_heads * K]; heads / key_heads consecutive heads share one,
                or, `in_turn`, each key_heads-th head does.
            v: [T, heads * V].
            alpha: [T, heads]; or [T, heads * K], a decay of each row of S, with a dt_bias of that
                size.
            beta: [T, heads].
            state: of `delta_state(heads, K, V)`.
        """
        heads = a_log.shape[0]
        by_key = dt_bias.shape[0] != heads
        keys = q.shape[-1] // key_heads
        self.require(heads % key_heads == 0, f"{heads} heads share {key_heads}")
        self.require(q.shape[-1] % key_heads == 0, f"{q.shape[-1]} columns in {key_heads} heads")
        self.require(v.shape[-1] % heads == 0, f"{v.shape[-1]} columns in {heads} heads")
        self.require_columns(k, q.shape[-1])
        self.require_columns(alpha, heads * keys if by_key else heads)
        self.require_columns(beta, heads)
        shape = delta_state(heads, keys, v.shape[-1] // heads)
        self.require((state.units, state.unit_size) == shape, f"{shape} in {state}")
        return self.run(q, k, v, alpha, beta, a_log, dt_bias, key_heads, state, ctx, in_turn)

    def reference(
        self,
        ref: ReferenceOps,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        alpha: Tensor,
        beta: Tensor,
        a_log: Tensor,
        dt_bias: Tensor,
        key_heads: int,
        state: StateLayer,
        ctx: ReferenceContext,
        in_turn: bool,
    ) -> Tensor:
        import torch
        from torch.nn import functional

        heads = len(a_log)
        of_head = torch.arange(heads)
        of_head = of_head % key_heads if in_turn else of_head // (heads // key_heads)
        keys = [x.float().unflatten(-1, (key_heads, -1)) for x in (q, k)]
        query, key = (
            (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS))[:, of_head] for x in keys
        )
        query = query * query.shape[-1] ** -0.5
        value = v.float().unflatten(-1, (heads, -1))
        rise = functional.softplus(alpha.float() + dt_bias).unflatten(-1, (heads, -1))
        decay = torch.exp(-a_log.exp()[:, None] * rise)  # of each key, or of all
        rate = beta.float().sigmoid()
        y = torch.empty_like(value)
        for tokens, kept in ctx.states(state):
            s = numbers_of(kept, key.shape[-1], value.shape[-1])
            for t in range(tokens.start, tokens.stop):
                s *= decay[t, ..., None]
                held = (s * key[t, ..., None]).sum(1)
                change = (value[t] - held) * rate[t, :, None]
                s += key[t, ..., None] * change[:, None]
                y[t] = (s * query[t, ..., None]).sum(1)
        return y.flatten(1).to(v.dtype)

    def record(
        self,
        recorder: Recorder,
        q: Symbol,
        k: Symbol,
        v: Symbol,
        alpha: Symbol,
        beta: Symbol,
        a_log: NDArray[np.float32],
        dt_bias: NDArray[np.float32],
        key_heads: int,
        state: StateLayer,
        ctx: ForwardContext,
        in_turn: bool,
    ) -> Symbol:
        out = Symbol.new(TOKENS, v.columns)
        heads = a_log.shape[0]
        recorder.add(
            Node(
                "gated_delta_rule",
                {"q": q, "k": k, "v": v, "alpha": alpha, "beta": beta},
                {"out": out},
                constants={"a_log": a_log, "dt_bias": dt_bias},
                ints={
                    "heads": heads,
                    "key_heads": key_heads,
                    "in_turn": int(in_turn),
                    "by_key": int(dt_bias.shape[0] != heads),
                    "keys": q.columns // key_heads,
                    "values": v.columns // heads,
                },
                floats={"eps": EPS},
                layer=state,
            )
        )
        return out


gated_delta_rule: GatedDeltaRule = GatedDeltaRule()
