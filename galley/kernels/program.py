"""A recorded forward pass as data: values, buffers and a list of native ops.

The recorder creates it, passes rewrite it, the arena lays out its buffers, and `cpu.py` passes it
to native code. The number of rows of a value is a dimension, whose size is known only when a step
runs; everything else is fixed here. `describe` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from galley.kernels import _native
from galley.kernels.adapters import AdapterSite, AdapterTable
from galley.kernels.values import CacheLayer
from galley.kernels.weights import PackedWeight

#: Number format of an activation row (csrc/program.h).
Kind = _native.Kind


class Dim(NamedTuple):
    """Number of rows of a value: the size of a dimension of the step, times a constant.

    Attributes:
        base: tokens, logits, sequences, or another dimension of the program's limits.
        times: rows for each; k where each token has k experts.
    """

    base: str
    times: int = 1

    def __str__(self) -> str:
        return self.base if self.times == 1 else f"{self.times} {self.base}"


TOKENS, LOGITS, SEQUENCES = Dim("tokens"), Dim("logits"), Dim("sequences")
#: Op of a node that native code does not run: its value is read after the step.
OUTPUT = "output"


class Buffer(msgspec.Struct, eq=False):
    """Memory for a value of so many columns; two are the same only if they are one object."""

    rows: Dim
    columns: int
    kind: Kind = Kind.f32


class Symbol(msgspec.Struct, frozen=True, eq=False):
    """A value at one moment: columns `start` .. `start + columns` of a buffer's rows.

    A buffer that is updated in place holds one symbol after the other.
    """

    buffer: Buffer
    columns: int
    start: int = 0

    @staticmethod
    def new(rows: Dim, columns: int, kind: Kind = Kind.f32) -> Symbol:
        return Symbol(Buffer(rows, columns, kind), columns)

    @property
    def shape(self) -> tuple[str, int]:
        return (str(self.buffer.rows), self.columns)

    @property
    def kind(self) -> Kind:
        return self.buffer.kind

    @property
    def is_whole(self) -> bool:
        return self.columns == self.buffer.columns


class PackedExperts(msgspec.Struct, frozen=True, eq=False, dict=True):
    """Matrices of a layer's experts, of equal shapes; their formats may differ.

    Attributes:
        weights: one of each expert, or all gates, then all ups.
        experts, top_k: how many there are, and how many each row is multiplied with.
    """

    weights: tuple[PackedWeight, ...]
    experts: int
    top_k: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(matrices, N, K)"""
        return (len(self.weights), *self.weights[0].shape)

    @cached_property
    def table(self) -> NDArray[np.int64]:
        """[experts, 9]: address, format, sizes as native code reads them (csrc/experts.h)."""
        names = ("format", "n", "k", "group", "zero", "scale", "offset", "table")
        rows = []
        for weight in self.weights:
            arguments = weight.arguments()
            rows.append([weight.data.ctypes.data, *(int(arguments[name]) for name in names)])
        return np.array(rows, np.int64)


class SiteTable(msgspec.Struct, frozen=True, eq=False):
    """The adapters' matrices of one layer."""

    adapters: AdapterTable
    site: AdapterSite

    @property
    def shape(self) -> tuple[int, ...]:
        """(places, matrices)"""
        return (len(self.adapters.adapters), self.site.inputs + len(self.site.parts))


Constant = PackedWeight | PackedExperts | SiteTable | NDArray[np.float32] | NDArray[np.int32]


class Node(msgspec.Struct, frozen=True, eq=False):
    """One op, with the argument names of docs/native_ops.md.

    Attributes:
        reads, writes, updates: values by argument; an update is read and written in place.
        constants: weights, norm weights, biases, tables.
        columns: names of step columns by argument, where not the argument's own name.
        layer: its cache is the argument `kv`, or `state`.
    """

    op: str
    reads: Mapping[str, Symbol] = {}
    writes: Mapping[str, Symbol] = {}
    updates: Mapping[str, Symbol] = {}
    constants: Mapping[str, Constant] = {}
    ints: Mapping[str, int] = {}
    floats: Mapping[str, float] = {}
    columns: Mapping[str, str] = {}
    layer: CacheLayer | None = None

    @property
    def values(self) -> dict[str, Symbol]:
        return {**self.reads, **self.updates, **self.writes}

    def with_ints(self, **ints: int) -> Node:
        return replace(self, ints={**self.ints, **ints})


def describe(nodes: Sequence[Node]) -> str:
    """One op a line: number, name, values read and constants → values written."""
    names: dict[Buffer, str] = {}

    def show(symbol: Symbol) -> str:
        buffer = symbol.buffer
        name = names.setdefault(buffer, f"%{len(names)}")
        part = "" if symbol.is_whole else f"[{symbol.start}:{symbol.start + symbol.columns}]"
        return f"{name}{part} {_show_dim(buffer.rows)}×{symbol.columns} {buffer.kind.name}"

    lines = []
    for i, node in enumerate(nodes):
        left = [f"{k}={show(v)}" for k, v in node.reads.items()]
        left += [f"{k}={_show_constant(v)}" for k, v in node.constants.items()]
        if node.layer is not None:
            left.append(f"kv=layer {node.layer.index}")
        ints = [f"{k}={v}" for k, v in node.ints.items() if v]
        right = [show(v) for v in node.writes.values()]
        right += [f"{show(v)} in place" for v in node.updates.values()]
        arrow = f"  →  {', '.join(right)}" if right else ""
        lines.append(f"{i:4d}  {node.op:12s} {', '.join([*left, *ints])}{arrow}")
    return "\n".join(lines)


_LETTERS = {"tokens": "T", "logits": "L", "sequences": "S"}


def _show_dim(dim: Dim) -> str:
    times = "" if dim.times == 1 else f"{dim.times}·"
    return times + _LETTERS.get(dim.base, dim.base)


def _show_constant(constant: Constant) -> str:
    shape = "×".join(str(n) for n in constant.shape)
    if isinstance(constant, PackedExperts):
        return f"[{shape} {constant.weights[0].format.name}]"
    if not isinstance(constant, PackedWeight):
        return f"[{shape}]"
    fmt = constant.format
    group = f"/{fmt.group} {fmt.scale}" if fmt.name in ("i8", "i4") else ""
    return f"[{shape} {fmt.name}{group}{'' if fmt.offset == 'zero' else f' {fmt.offset}'}]"
