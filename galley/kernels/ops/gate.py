"""Product with an activated gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from galley.kernels.ops.definition import WHOLE_ROWS, NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps

Function = Literal["silu", "sigmoid", "identity", "gelu_tanh", "gelu"]
FUNCTIONS: tuple[Function, ...] = get_args(Function)


def _arguments(node: Node) -> dict[str, int]:
    x, gate, out = node.reads["x"], node.reads["gate"], whole(output(node))
    return {
        "n": out.columns,
        "x_stride": x.buffer.columns,
        "gate_stride": gate.buffer.columns,
        "out_kind": int(out.kind),
    }


class Gate(Op):
    name = "gate"
    native = NativeOp(
        "gate",
        pointers={"x": "f32", "gate": "f32", "out": ""},
        ints={
            "n": "columns of out",
            "function?": ", ".join(f"{i} {name}" for i, name in enumerate(FUNCTIONS)),
            "x_stride?": "default n",
            "gate_stride?": "default n",
            "out_kind": "",
        },
        floats={"scale?": "default 1"},
        arguments=_arguments,
        stores=WHOLE_ROWS,
        rows={"x": TOKENS, "gate": TOKENS, "out": TOKENS},
    )

    def __call__(
        self, x: Value, gate: Value, function: Function = "silu", scale: float = 1.0
    ) -> Value:
        """[T, N]: x * function(gate * scale)."""
        self.require_columns(gate, x.shape[-1])
        self.require(function in FUNCTIONS, f"no function {function!r}")
        return self.run(x, gate, function, scale)

    def reference(
        self, ref: ReferenceOps, x: Tensor, gate: Tensor, function: Function, scale: float
    ) -> Tensor:
        from torch.nn import functional

        factor = gate.float() * scale
        match function:
            case "silu":
                factor = functional.silu(factor)
            case "sigmoid":
                factor = factor.sigmoid()
            case "gelu_tanh":
                factor = functional.gelu(factor, approximate="tanh")
            case "gelu":
                factor = functional.gelu(factor)
        return (x.float() * factor).to(x.dtype)

    def record(
        self, recorder: Recorder, x: Symbol, gate: Symbol, function: Function, scale: float
    ) -> Symbol:
        out = Symbol.new(TOKENS, x.columns)
        ints = {"function": FUNCTIONS.index(function)}
        floats = {"scale": scale}
        recorder.add(Node("gate", {"x": x, "gate": gate}, {"out": out}, ints=ints, floats=floats))
        return out


gate: Gate = Gate()
