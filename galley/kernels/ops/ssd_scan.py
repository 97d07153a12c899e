"""The state space recurrence of Mamba-2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from galley.kernels.ops.definition import Op
from galley.kernels.ops.state_op import LANES, given, padded, state_native
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, ForwardContext, StateLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps


def ssd_state(heads: int, head_dim: int, state_size: int) -> tuple[int, int]:
    """Units of the state, a head each, and their numbers: [state_size, head_dim] and a scale."""
    return heads, state_size * padded(head_dim) + LANES


class SSDParameters(msgspec.Struct, frozen=True):
    """The learned constants and the settings of the recurrence.

    Attributes:
        a_log, d, dt_bias: [heads].
        groups: heads / groups consecutive heads share b and c.
        dt_min, dt_max: bounds of the time step.
        dt_scale: factor of dt.
        gate_scale: factor of the gate.
    """

    a_log: Constant
    d: Constant
    dt_bias: Constant
    groups: int
    dt_min: float = 0.0
    dt_max: float = float("inf")
    dt_scale: float = 1.0
    gate_scale: float = 1.0


class SSDScan(Op):
    name = "ssd_scan"
    native = state_native(
        "ssd_scan",
        values=["x", "b", "c", "dt", "gate?"],
        constants=dict.fromkeys(("a_log", "d", "dt_bias"), "f32 [heads]"),
        ints={"heads": "", "head_dim": "", "groups": "of b and c", "state_size": ""},
        floats={
            "dt_scale?": "default 1",
            "dt_min?": "default 0",
            "dt_max?": "default infinity",
            "gate_scale?": "default 1",
        },
    )

    def __call__(
        self,
        x: Value,
        b: Value,
        c: Value,
        dt: Value,
        parameters: SSDParameters,
        state: StateLayer,
        ctx: ForwardContext,
        gate: Value | None = None,
    ) -> Value:
        """[T, heads * P]: per head, with S [N, P] from token to token,

        step = softplus(dt * dt_scale + dt_bias), within dt_min … dt_max
        S = exp(-step * exp(a_log)) S + step * b xᵀ
        y = Sᵀ c + d x, times silu(gate * gate_scale) if there is a gate

        Native code keeps S divided by a scale that takes the decays (csrc/state_scale.h): two
        multiply-adds per number and token, in order, so that no bit depends on chunks.

        Args:
            x, gate: [T, heads * P].
            b, c: [T, groups * N].
            dt: [T, heads].
            state: of `ssd_state(heads, P, N)`.
        """
        heads, groups = parameters.a_log.shape[0], parameters.groups
        self.require(heads % groups == 0, f"{heads} heads in {groups} groups")
        self.require(x.shape[-1] % heads == 0, f"{x.shape[-1]} columns in {heads} heads")
        self.require(b.shape[-1] % groups == 0, f"{b.shape[-1]} columns in {groups} groups")
        self.require_columns(c, b.shape[-1])
        self.require_columns(dt, heads)
        shape = ssd_state(heads, x.shape[-1] // heads, b.shape[-1] // groups)
        self.require((state.units, state.unit_size) == shape, f"{shape} in {state}")
        if gate is not None:
            self.require_columns(gate, x.shape[-1])
        return self.run(x, b, c, dt, parameters, state, ctx, gate)

    def reference(
        self,
        ref: ReferenceOps,
        x: Tensor,
        b: Tensor,
        c: Tensor,
        dt: Tensor,
        parameters: SSDParameters,
        state: StateLayer,
        ctx: ReferenceContext,
        gate: Tensor | None,
    ) -> Tensor:
        import torch
        from torch.nn import functional

        p: Any = parameters
        a_log, d, dt_bias = p.a_log, p.d, p.dt_bias
        heads = len(a_log)
        each = x.float().unflatten(-1, (heads, -1))  # [T, heads, P]
        of_head = torch.arange(heads) // (heads // p.groups)
        b, c = (v.float().unflatten(-1, (p.groups, -1))[:, of_head] for v in (b, c))
        step = functional.softplus(dt.float() * p.dt_scale + dt_bias).clamp(p.dt_min, p.dt_max)
        decay = torch.exp(-step * a_log.exp())
        added = b[..., None] * (step[..., None] * each)[:, :, None]  # [T, heads, N, P]
        y = torch.empty_like(each)
        for tokens, kept in ctx.states(state):
            s = kept[:, :-LANES].unflatten(1, (b.shape[-1], -1))
            for t in range(tokens.start, tokens.stop):
                s[..., : each.shape[-1]] *= decay[t, :, None, None]
                s[..., : each.shape[-1]] += added[t]
                y[t] = (s[..., : each.shape[-1]] * c[t, :, :, None]).sum(1)
        y = (y + d[:, None] * each).flatten(1)
        if gate is not None:
            y = y * functional.silu(gate.float() * p.gate_scale)
        return y.to(x.dtype)

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        b: Symbol,
        c: Symbol,
        dt: Symbol,
        parameters: SSDParameters,
        state: StateLayer,
        ctx: ForwardContext,
        gate: Symbol | None,
    ) -> Symbol:
        p = parameters
        out = Symbol.new(TOKENS, x.columns)
        heads = p.a_log.shape[0]
        recorder.add(
            Node(
                "ssd_scan",
                given(x=x, b=b, c=c, dt=dt, gate=gate),
                {"out": out},
                constants=given(a_log=p.a_log, d=p.d, dt_bias=p.dt_bias),
                ints={
                    "heads": heads,
                    "head_dim": x.columns // heads,
                    "groups": p.groups,
                    "state_size": b.columns // p.groups,
                },
                floats={
                    "dt_scale": p.dt_scale,
                    "dt_min": p.dt_min,
                    "dt_max": p.dt_max,
                    "gate_scale": p.gate_scale,
                },
                layer=state,
            )
        )
        return out


ssd_scan: SSDScan = SSDScan()
