"""What the ops over recurrent states share (csrc/state.h)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from galley.kernels.ops.definition import whole
from galley.kernels.program import Node

#: Arguments of every op over a state.
STATE_POINTERS = {"state": "this layer's base"}
STATE_INTS = {
    "state_block_stride": "bytes",
    "state_first?": "number of the first unit",
    "state_per_block": "units",
    "state_width": "blocks of a state",
    "state_interval?": "tokens, 0 = one state",
}


def given(**values: Any) -> dict[str, Any]:
    """Values or constants by name, those that are None left out."""
    return {name: value for name, value in values.items() if value is not None}


def stride_ints(names: Sequence[str]) -> dict[str, str]:
    """Documentation of the strides of the values `names`."""
    return {f"{name}_stride?": "default its columns" for name in names}


def strides(node: Node) -> Mapping[str, int]:
    """Elements from row to row of all values that a node reads; `out` is whole rows."""
    whole(node.writes["out"])
    return {f"{name}_stride": value.buffer.columns for name, value in node.reads.items()}
