"""Causal convolution of each channel over the last few tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import Op
from galley.kernels.ops.state_op import given, state_native
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, ForwardContext, StateLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps

#: Channels of a unit of the state.
CHANNELS = 64


def conv_state(channels: int, taps: int) -> tuple[int, int]:
    """Units and numbers of a unit of the state: the last taps - 1 inputs of each channel."""
    return -(-channels // CHANNELS), (taps - 1) * CHANNELS


class CausalConv(Op):
    name = "causal_conv"
    native = state_native(
        "causal_conv",
        values={"x": "", "before?": ", factor of x", "after?": ", factor of the result"},
        constants={
            "weight": "f32 [channels][taps]",
            "bias?": "f32 [channels]",
            "scale?": "f32 [channels], factor of x",
        },
        ints={"channels": "", "taps": "", "silu?": "1 = of the convolution, before `after`"},
    )

    def __call__(
        self,
        x: Value,
        weight: Constant,
        state: StateLayer,
        ctx: ForwardContext,
        *,
        bias: Constant | None = None,
        scale: Constant | None = None,
        before: Value | None = None,
        after: Value | None = None,
        silu: bool = False,
    ) -> Value:
        """[T, C]: y[t, c] = sum over k of weight[c, 0, k] * u[t - taps + 1 + k, c] + bias[c],
        where u = x * scale * before, and 0 before the sequence; then silu(y), then y * after.

        Args:
            weight: [C, 1, taps], as torch.nn.Conv1d has it.
            state: of `conv_state(C, taps)`.
        """
        channels, one, taps = weight.shape
        self.require_columns(x, channels)
        self.require(one == 1, "a weight [channels, 1, taps]")
        self.require(
            (state.units, state.unit_size) == conv_state(channels, taps), f"{channels} in {state}"
        )
        for value in (before, after):
            if value is not None:
                self.require_columns(value, channels)
        return self.run(x, weight, state, ctx, bias, scale, before, after, silu)

    def reference(
        self,
        ref: ReferenceOps,
        x: Tensor,
        weight: Tensor,
        state: StateLayer,
        ctx: ReferenceContext,
        bias: Tensor | None,
        scale: Tensor | None,
        before: Tensor | None,
        after: Tensor | None,
        silu: bool,
    ) -> Tensor:
        import torch
        from torch.nn import functional

        channels, _, taps = weight.shape
        u = x.float()
        if before is not None:
            u = u * before.float()
        w = weight if scale is None else weight * scale[:, None, None]
        y = torch.empty_like(u)
        for tokens, kept in ctx.states(state):
            past = kept.view(-1, taps - 1, CHANNELS).transpose(0, 1).flatten(1)  # [taps - 1, C']
            window = torch.cat([past[:, :channels], u[tokens]])
            y[tokens] = functional.conv1d(window.T[None], w, bias, groups=channels)[0].T
            padded = torch.zeros_like(past)
            padded[:, :channels] = window[len(window) - taps + 1 :]
            kept.copy_(padded.unflatten(1, (-1, CHANNELS)).transpose(0, 1).flatten(1))
        y = functional.silu(y) if silu else y
        return (y if after is None else y * after.float()).to(x.dtype)

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        weight: Constant,
        state: StateLayer,
        ctx: ForwardContext,
        bias: Constant | None,
        scale: Constant | None,
        before: Symbol | None,
        after: Symbol | None,
        silu: bool,
    ) -> Symbol:
        out = Symbol.new(TOKENS, x.columns)
        recorder.add(
            Node(
                "causal_conv",
                given(x=x, before=before, after=after),
                {"out": out},
                constants=given(weight=weight, bias=bias, scale=scale),
                ints={"channels": x.columns, "taps": weight.shape[2], "silu": int(silu)},
                layer=state,
            )
        )
        return out


causal_conv: CausalConv = CausalConv()
