"""The state space recurrence of Mamba-1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import Op
from galley.kernels.ops.state_op import given, state_native
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, ForwardContext, StateLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps

#: Channels of a unit of the state.
CHANNELS = 16


def scan_state(channels: int, state_size: int) -> tuple[int, int]:
    """Units and numbers of a unit of the state: [state_size] of each channel."""
    return -(-channels // CHANNELS), state_size * CHANNELS


class SelectiveScan(Op):
    name = "selective_scan"
    native = state_native(
        "selective_scan",
        values=["x", "dt", "b", "c", "gate?"],
        constants={"a_log": "f32 [channels][state_size]", "d": "f32 [channels]"},
        ints={"channels": "", "state_size": ""},
    )

    def __call__(
        self,
        x: Value,
        dt: Value,
        b: Value,
        c: Value,
        a_log: Constant,
        d: Constant,
        state: StateLayer,
        ctx: ForwardContext,
        gate: Value | None = None,
    ) -> Value:
        """[T, C]: per channel, with S [N] from token to token,

        step = softplus(dt)
        S = exp(-step * exp(a_log)) * S + step * x * b
        y = S · c + d * x, times silu(gate) if there is a gate

        Args:
            x, dt, gate: [T, C].
            b, c: [T, N].
            a_log: [C, N].
            d: [C].
            state: of `scan_state(C, N)`.
        """
        channels, size = a_log.shape
        for value in (x, dt) if gate is None else (x, dt, gate):
            self.require_columns(value, channels)
        self.require_columns(b, size)
        self.require_columns(c, size)
        self.require(
            (state.units, state.unit_size) == scan_state(channels, size), f"{channels} in {state}"
        )
        return self.run(x, dt, b, c, a_log, d, state, ctx, gate)

    def reference(
        self,
        ref: ReferenceOps,
        x: Tensor,
        dt: Tensor,
        b: Tensor,
        c: Tensor,
        a_log: Tensor,
        d: Tensor,
        state: StateLayer,
        ctx: ReferenceContext,
        gate: Tensor | None,
    ) -> Tensor:
        import torch
        from torch.nn import functional

        channels, size = a_log.shape
        wide, step = x.float(), functional.softplus(dt.float())
        decay = torch.exp(-step[..., None] * a_log.exp())  # [T, C, N]
        added = (step * wide)[..., None] * b.float()[:, None]
        y = torch.empty_like(wide)
        for tokens, kept in ctx.states(state):
            # [units, N, CHANNELS] → [C, N]
            s = kept.unflatten(1, (size, CHANNELS)).transpose(1, 2).flatten(0, 1)[:channels]
            for t in range(tokens.start, tokens.stop):
                s = s * decay[t] + added[t]
                y[t] = (s * c[t].float()).sum(-1)
            padded = functional.pad(s, (0, 0, 0, state.units * CHANNELS - channels))
            kept.copy_(padded.unflatten(0, (-1, CHANNELS)).transpose(1, 2).flatten(1))
        y = y + d * wide
        return (y if gate is None else y * functional.silu(gate.float())).to(x.dtype)

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        dt: Symbol,
        b: Symbol,
        c: Symbol,
        a_log: NDArray[np.float32],
        d: NDArray[np.float32],
        state: StateLayer,
        ctx: ForwardContext,
        gate: Symbol | None,
    ) -> Symbol:
        out = Symbol.new(TOKENS, x.columns)
        recorder.add(
            Node(
                "selective_scan",
                given(x=x, dt=dt, b=b, c=c, gate=gate),
                {"out": out},
                constants={"a_log": a_log, "d": d},
                ints={"channels": x.columns, "state_size": b.columns},
                layer=state,
            )
        )
        return out


selective_scan: SelectiveScan = SelectiveScan()
