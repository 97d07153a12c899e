"""The feed-forward blocks of the experts that each token has chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import PARTS_OF_ROWS, WHOLE_ROWS, NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Constant, Dim, Node, PackedExperts, Symbol
from galley.kernels.values import Constant as Handle
from galley.kernels.values import Value, Weight
from galley.kernels.weights import PackedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


class Activation(IntEnum):
    """Of gate and up, or of up alone (csrc/expert_linear.cpp)."""

    silu = 0
    #: With the tanh form of GELU.
    gelu = 1
    #: gpt-oss: (up + 1) * gate * sigmoid(alpha * gate), gate and up clamped.
    clamped_swiglu = 2
    #: Of experts without gates: the square of ReLU.
    relu2 = 4


class ExpertWeights(msgspec.Struct, frozen=True, eq=False):
    """Handles of a layer's experts: E of each matrix, of equal shapes.

    Attributes:
        gate: [I, H] each; or gate and up interleaved in runs (`GATE_UP_RUN`), [2 I, H]; without
            gates, up.
        up: [I, H]; None = interleaved with the gate, or in its place.
        down: [H, I].
        gate_bias, up_bias, down_bias: of all experts, one behind the other, in the order of the
            weights' outputs; None = none.
        alpha, limit: of the clamped SwiGLU.
        weigh_inputs: an expert's input is multiplied with the token's weight, not its output.
    """

    gate: Sequence[Weight]
    up: Sequence[Weight] | None
    down: Sequence[Weight]
    gate_bias: Handle | None = None
    up_bias: Handle | None = None
    down_bias: Handle | None = None
    activation: Activation = Activation.silu
    alpha: float = 0.0
    limit: float = 0.0
    weigh_inputs: bool = False

    @property
    def intermediate(self) -> int:
        return self.down[0].shape[1]

    @property
    def gated(self) -> bool:
        return self.activation != Activation.relu2

    @property
    def interleaved(self) -> bool:
        return self.gated and self.up is None


#: In place of an activation: gate and up as they are.
_NONE = 3
_SHARED_INTS = {"k": "inputs", "experts": "", "top_k": "", "x_kind": ""}


def _row_arguments(node: Node) -> dict[str, int]:
    x, out = whole(node.reads["x"]), whole(output(node))
    return {
        "k": x.columns,
        "x_kind": int(x.kind),
        "out_kind": int(out.kind),
        "top_k": node.reads["chosen"].columns // 2,
    }


def _linear_arguments(node: Node) -> dict[str, int]:
    experts = next(c for c in node.constants.values() if isinstance(c, PackedExperts))
    arguments = {**_row_arguments(node), "n": output(node).columns, "experts": experts.experts}
    if node.op == "expert_down":
        del arguments["out_kind"]
    elif node.ints["activation"] == _NONE:
        arguments["n"] //= 2
    return arguments


EXPERT_ROWS = NativeOp(
    "expert_rows",
    pointers={"x": "", "chosen": "f32, of `route`", "out": "rows by place"},
    ints={
        **_SHARED_INTS,
        "k": "",
        "out_kind": "that of x unless `weigh`",
        "weigh?": "x is f32 and multiplied with the token's weight",
    },
    arguments=_row_arguments,
    stores=WHOLE_ROWS,
    rows={"x": TOKENS, "chosen": TOKENS},
)
EXPERT_UP = NativeOp(
    "expert_up",
    pointers={
        "x": "rows by place",
        "chosen": "f32, of `route`",
        "gate_up": "experts' weights; without gates, those of up",
        "bias?": "f32",
        "out": "rows by place",
    },
    ints={
        **_SHARED_INTS,
        "n": "columns of out, or half of them without activation",
        "out_kind": "",
        "interleaved?": "0 = all gates, then all ups; 1 = an expert's both, in runs of 16",
        "activation": "0 SiLU, 1 GELU, 2 clamped SwiGLU, 3 none: gate and up, f32, "
        "4 without gates: the square of ReLU",
    },
    floats={"alpha?": "of the clamped SwiGLU", "limit?": "of the clamped SwiGLU"},
    arguments=_linear_arguments,
    stores=PARTS_OF_ROWS,
    rows={"chosen": TOKENS},
)
EXPERT_DOWN = NativeOp(
    "expert_down",
    pointers={
        "x": "rows by place",
        "chosen": "f32, of `route`",
        "down": "experts' weights",
        "bias?": "f32",
        "out": "f32 [tokens][n]",
    },
    ints={**_SHARED_INTS, "n": "columns of out", "weigh?": "default 1; 0 = each weight is 1"},
    arguments=_linear_arguments,
    rows={"chosen": TOKENS, "out": TOKENS},
)


class Experts(Op):
    name = "experts"

    def __call__(self, x: Value, chosen: Value, experts: ExpertWeights) -> Value:
        """[T, H]: each token's weighted sum over its experts, in ascending order of their ids.

        An expert is down(act(gate(x)) * up(x)), or down(act(up(x))) without gates. The weights of
        experts that no token has chosen are not read.

        Args:
            chosen: the result of `route`.
        """
        for weight in (*experts.gate, *(experts.up or ())):
            self.require_columns(x, weight.shape[1])
        gate = experts.gate[0].shape[0] // (2 if experts.interleaved else 1)
        self.require(gate == experts.intermediate, f"{gate} outputs of gate for {experts.down[0]}")
        return self.run(x, chosen, experts)

    def reference(
        self, ref: ReferenceOps, x: Tensor, chosen: Tensor, experts: ExpertWeights
    ) -> Tensor:
        import torch

        total = torch.zeros(x.shape[0], experts.down[0].shape[0], dtype=x.dtype)
        for expert, token, weight in chosen_rows(chosen):
            weight = weight.to(x.dtype)
            rows = x[token] * weight if experts.weigh_inputs else x[token]
            y = expert_of(expert, rows, experts)
            total.index_add_(0, token, y if experts.weigh_inputs else y * weight)
        return total

    def record(
        self, recorder: Recorder, x: Symbol, chosen: Symbol, experts: ExpertWeights
    ) -> Symbol:
        nodes = ExpertNodes(recorder, chosen, experts)
        by_place = nodes.rows(x)
        return nodes.down(nodes.gate_up(by_place, experts.intermediate, experts.activation))


class ExpertNodes:
    """Records the native ops of a layer of experts."""

    def __init__(self, recorder: Recorder, chosen: Symbol, experts: ExpertWeights) -> None:
        top_k, count = chosen.columns // 2, len(experts.down)
        self._recorder, self._chosen, self._experts = recorder, chosen, experts
        self._gate_up = PackedExperts(_packed(*experts.gate, *(experts.up or ())), count, top_k)
        self._down = PackedExperts(_packed(*experts.down), count, top_k)

    def rows(self, x: Symbol) -> Symbol:
        """[places, H] the tokens' rows by place."""
        recorder, weigh = self._recorder, self._experts.weigh_inputs
        kind = recorder.kind_for(self._gate_up.weights)
        rows = x if weigh else recorder.rounded(x, kind)
        by_place = Symbol.new(Dim(TOKENS.base, self._gate_up.top_k), x.columns, kind)
        ints = {"experts": self._gate_up.experts, "weigh": int(weigh)}
        reads = {"x": rows, "chosen": self._chosen}
        recorder.add(Node("expert_rows", reads, {"out": by_place}, ints=ints))
        return by_place

    def gate_up(self, by_place: Symbol, columns: int, activation: Activation | None) -> Symbol:
        """[places, columns] the activated gate; gate and up as they are without an activation."""
        experts = self._experts
        biases = [_numbers(b) for b in (experts.gate_bias, experts.up_bias) if b is not None]
        out = Symbol.new(by_place.buffer.rows, columns)
        constants: dict[str, Constant] = {"gate_up": self._gate_up}
        if biases:
            constants["bias"] = np.concatenate(biases)
        self._recorder.add(
            Node(
                "expert_up",
                {"x": by_place, "chosen": self._chosen},
                {"out": out},
                constants=constants,
                ints={
                    "activation": _NONE if activation is None else int(activation),
                    "interleaved": int(experts.interleaved),
                },
                floats={"alpha": experts.alpha, "limit": experts.limit},
            )
        )
        return out

    def down(self, activated: Symbol) -> Symbol:
        """[T, H] the weighted sum of each token's experts."""
        recorder, experts = self._recorder, self._experts
        rows = recorder.rounded(activated, recorder.kind_for(self._down.weights))
        out = Symbol.new(TOKENS, self._down.shape[1])
        constants: dict[str, Constant] = {"down": self._down}
        if experts.down_bias is not None:
            constants["bias"] = _numbers(experts.down_bias)
        recorder.add(
            Node(
                "expert_down",
                {"x": rows, "chosen": self._chosen},
                {"out": out},
                constants=constants,
                ints={"weigh": int(not experts.weigh_inputs)},
            )
        )
        return out


experts: Experts = Experts()


def _packed(*weights: Any) -> tuple[PackedWeight, ...]:
    """The handles as what this backend's are."""
    return weights


def _numbers(values: Any) -> NDArray[np.float32]:
    """A handle of numbers, likewise."""
    numbers: NDArray[np.float32] = values
    return numbers


def chosen_rows(chosen: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each expert that was chosen, in ascending order, its tokens [n] and their weights [n, 1]."""
    import torch

    weights, ids = chosen.chunk(2, dim=-1)
    for expert in ids.unique().int().tolist():  # ascending
        token, rank = torch.where(ids == expert)
        yield expert, token, weights[token, rank, None]


def expert_of(
    expert: int,
    x: Tensor,
    experts: ExpertWeights,
    adapt: Callable[[int, Tensor, Tensor], Tensor] = lambda projection, x, y: y,
) -> Tensor:
    """The definition of one expert, on the rows that chose it. Gate and up are apart.

    Args:
        adapt: from a projection (0 gate, 1 up, 2 down), its input and its result to the result.
    """
    import torch
    from torch.nn.functional import gelu, linear, relu, silu

    assert not experts.interleaved, "the reference backend interleaves nothing"

    def project(
        number: int, rows: Tensor, weights: Sequence[Weight], biases: Handle | None
    ) -> Tensor:
        weight = weights[expert]
        assert isinstance(weight, torch.Tensor)
        y = linear(rows, weight.to(rows.dtype))
        if biases is not None:
            assert isinstance(biases, torch.Tensor)
            y = y + biases.view(len(weights), -1)[expert].to(rows.dtype)
        return adapt(number, rows, y)

    gate = project(0, x, experts.gate, experts.gate_bias)
    if experts.up is None:
        return project(2, relu(gate).square(), experts.down, experts.down_bias)
    up = project(1, x, experts.up, experts.up_bias)
    if experts.activation == Activation.clamped_swiglu:
        gate = gate.clamp(max=experts.limit)
        up = up.clamp(min=-experts.limit, max=experts.limit)
        h = (up + 1) * (gate * torch.sigmoid(experts.alpha * gate))
    elif experts.activation == Activation.gelu:
        h = gelu(gate, approximate="tanh") * up
    else:
        h = silu(gate) * up
    return project(2, h, experts.down, experts.down_bias)
