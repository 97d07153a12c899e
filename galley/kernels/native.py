"""Converts a node to the named arguments of its native op (docs/native_ops.md)."""

from __future__ import annotations

from collections.abc import Callable

from galley.kernels.ops import native_op
from galley.kernels.program import Buffer, Constant, Dim, Kind, Node, PackedExperts, SiteTable
from galley.kernels.weights import PackedWeight

#: Bytes of one element, for kinds without scales.
_ITEM_BYTES = {Kind.f32: 4, Kind.bf16: 2}


#: A native argument that is no pointer; a str names a column of the step.
Argument = int | float | str | Dim


def arguments(node: Node) -> dict[str, Argument]:
    """All arguments except pointers and those of the KV cache."""
    native = native_op(node.op)
    assert native is not None, f"there is no native op {node.op}"
    return {**native.arguments(node), **node.ints, **node.floats, **node.columns}


def pointer_arguments(node: Node, address_of: Callable[[Buffer], int]) -> dict[str, int]:
    """All pointer arguments except that of the KV cache."""
    pointers = {name: _constant_address(c) for name, c in node.constants.items()}
    for name, value in node.values.items():
        pointers[name] = address_of(value.buffer)
        if value.start:
            pointers[name] += value.start * _ITEM_BYTES[value.kind]
    return pointers


def _constant_address(constant: Constant) -> int:
    if isinstance(constant, PackedExperts):
        return int(constant.table.ctypes.data)
    if isinstance(constant, SiteTable):
        return int(constant.adapters.table.ctypes.data)
    array = constant.data if isinstance(constant, PackedWeight) else constant
    return int(array.ctypes.data)
