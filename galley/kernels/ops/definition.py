"""Definition of an op: the call that models use (`Op`) and the op of csrc/ (`NativeOp`).

An op is one file of this package and one line in `Ops`. It checks its arguments, defines its
result in PyTorch (`reference`), and adds the nodes of a program that compute it (`record`). The
file ends with `name: Class = Class()`: with that annotation mypy checks the calls in models. torch
is imported where a definition is run, never where a model is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import msgspec

from galley.kernels.program import Dim, Kind, Node, Symbol
from galley.kernels.values import RankGroup, Value
from galley.kernels.weights import PackedWeight

if TYPE_CHECKING:
    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps

#: Kinds that an op can store its result as when it has whole rows, and when it has some columns:
#: the scale of q8_row is that of a whole row.
WHOLE_ROWS = (Kind.f32, Kind.bf16, Kind.q8, Kind.q8_row, Kind.q16)
PARTS_OF_ROWS = (Kind.f32, Kind.bf16, Kind.q8, Kind.q16)


class OpBackend(Protocol):
    """Runs ops: computes them at once, or records them. Arguments have been checked."""

    def run(self, op: Op, *args: Any) -> Any: ...


class Op:
    """An op that models call as a method of `Ops`; a subclass types and checks `__call__`.

    Attributes:
        name: of the method, and in error messages.
        native: the native op that computes it; None where there is nothing to compute.
    """

    name: ClassVar[str]
    native: ClassVar[NativeOp | None] = None

    def __init__(self, backend: OpBackend | None = None, group: RankGroup | None = None) -> None:
        self._backend = backend
        self.group = group

    def __get__(self, ops: Any, owner: type | None = None) -> Self:
        """As an attribute of an `Ops`: this op on its backend."""
        return self if ops is None else type(self)(ops.backend, ops.group)

    def run(self, *args: Any) -> Any:
        """Run the op on its backend; `args` are those of `reference` and `record`."""
        assert self._backend is not None, f"{self.name}: called without an Ops"
        return self._backend.run(self, *args)

    def reference(self, ref: ReferenceOps, *args: Any, **kwargs: Any) -> Any:
        """The definition, on tensors."""
        raise NotImplementedError

    def record(self, recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
        """Add the nodes that compute the op, and return the symbol of its result."""
        raise NotImplementedError

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"{self.name}: {message}")

    def require_columns(self, x: Value, columns: int) -> None:
        self.require(x.shape[-1] == columns, f"{x.shape[-1]} columns where {columns} are needed")


def no_arguments(node: Node) -> dict[str, int | Dim]:
    return {}


class NativeOp(msgspec.Struct, frozen=True, eq=False):
    """An op of csrc/, added to a program by name.

    Attributes:
        name: as GALLEY_OP registers it.
        pointers, ints, floats: named arguments and their meaning; "?" after a name: may be absent.
        columns: of the step, that the op reads (csrc/columns.h).
        arguments: the arguments that follow from a node's values and constants.
        stores: kinds that `out` can be stored as.
        rows: dimension that the rows of a value must have, None = any; values not named agree in
            theirs.
        in_place: `out` may take the memory of `x`, if it has its shape and kind.
        note: stands beside the name in docs/native_ops.md.
    """

    name: str
    pointers: Mapping[str, str]
    ints: Mapping[str, str] = {}
    floats: Mapping[str, str] = {}
    columns: tuple[str, ...] = ()
    arguments: Callable[[Node], Mapping[str, int | Dim]] = no_arguments
    stores: tuple[Kind, ...] = (Kind.f32,)
    rows: Mapping[str, Dim | None] = {}
    in_place: bool = False
    note: str = ""


def whole(value: Symbol) -> Symbol:
    """`value`, for a native op that takes no stride. ValueError for part of a row."""
    if not value.is_whole:
        raise ValueError(f"columns from {value.start} where whole rows are needed")
    return value


def output(node: Node) -> Symbol:
    """The value `out`, new or updated in place."""
    return node.updates.get("out") or node.writes["out"]


def weight_arguments(node: Node) -> dict[str, int]:
    """Sizes and format of the constant `weight`."""
    weight = node.constants["weight"]
    assert isinstance(weight, PackedWeight)
    return weight.arguments()


#: How `weight_arguments` are documented.
WEIGHT_INTS = {
    "n": "outputs",
    "k": "inputs",
    "format": "",
    "group?": "",
    "zero?": "",
    "scale?": "",
    "offset?": "",
    "table?": "",
}
