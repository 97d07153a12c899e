"""Base of the ops that activate a gate and multiply it with its up projection."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from galley.kernels.ops.definition import WHOLE_ROWS, NativeOp, Op, output, whole
from galley.kernels.program import Dim, Node, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps

#: Interleaved gate and up columns alternate in runs of this length (docs/native_ops.md).
GATE_UP_RUN = 16


def _arguments(node: Node) -> dict[str, int | Dim]:
    out = whole(output(node))
    whole(node.reads["x"])
    return {"n": out.columns, "rows": out.buffer.rows, "out_kind": int(out.kind)}


def gated_native(name: str) -> NativeOp:
    """The native op `name`, with the arguments that all of these share."""
    return NativeOp(
        name,
        pointers={"x": "f32", "out": ""},
        ints={
            "n": "columns of out",
            "rows?": "dimension, default tokens",
            "out_kind": "",
            "interleaved?": "0 = gate then up, 1 = in runs of 16",
        },
        arguments=_arguments,
        stores=WHOLE_ROWS,
    )


def _split_gate_up(gate_up: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Gate and up, [T, I] each."""
    if not interleaved:
        gate, up = gate_up.chunk(2, dim=-1)
        return gate, up
    runs = gate_up.unflatten(-1, (-1, 2, GATE_UP_RUN))
    return runs[..., 0, :].flatten(-2), runs[..., 1, :].flatten(-2)


class GatedActivation(Op):
    """A subclass has a name, its native op, and the activation in PyTorch."""

    native: ClassVar[NativeOp]

    def __call__(self, gate_up: Value, interleaved: bool = False) -> Value:
        """[T, I]: act(gate) * up, of [T, 2 I]: gate | up, or both in turn in runs of 16."""
        i = gate_up.shape[-1] // 2
        self.require(gate_up.shape[-1] == 2 * i, "an odd number of columns")
        self.require(not interleaved or i % GATE_UP_RUN == 0, f"{i} columns in runs")
        return self.run(gate_up, interleaved)

    def activate(self, gate: Tensor) -> Tensor:
        raise NotImplementedError

    def reference(self, ref: ReferenceOps, gate_up: Tensor, interleaved: bool) -> Tensor:
        gate, up = _split_gate_up(gate_up, interleaved)
        return self.activate(gate) * up

    def record(self, recorder: Recorder, gate_up: Symbol, interleaved: bool) -> Symbol:
        out = Symbol.new(gate_up.buffer.rows, gate_up.columns // 2)
        ints = {"interleaved": int(interleaved)}
        recorder.add(Node(self.native.name, {"x": gate_up}, {"out": out}, ints=ints))
        return out
