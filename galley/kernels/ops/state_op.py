"""Code shared by the ops over recurrent states (csrc/state.h)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from galley.kernels.ops.definition import NativeOp, whole
from galley.kernels.program import TOKENS, Node

#: Numbers side by side in a unit of a state are padded to a multiple.
LANES = 16

#: Arguments of every op over a state.
STATE_POINTERS = {
    "state": "this layer's base",
    "snapshots?": "f32 [most_drafts][state], states before each draft of a step",
}
STATE_INTS = {
    "state_block_stride": "bytes",
    "state_first?": "number of the first unit",
    "state_per_block": "units",
    "state_width": "blocks of a state",
    "state_interval?": "tokens, 0 = one state",
    "most_drafts?": "of a step; 0 = none can be taken back",
}


def padded(size: int) -> int:
    return -(-size // LANES) * LANES


def given(**values: Any) -> dict[str, Any]:
    """Values or constants by name, those that are None left out."""
    return {name: value for name, value in values.items() if value is not None}


def strides(node: Node) -> Mapping[str, int]:
    """Elements from row to row of all values that a node reads; `out` is whole rows."""
    whole(node.writes["out"])
    return {f"{name}_stride": value.buffer.columns for name, value in node.reads.items()}


def state_native(
    name: str,
    values: Iterable[str] | Mapping[str, str],
    constants: Mapping[str, str],
    ints: Mapping[str, str],
    floats: Mapping[str, str] | None = None,
) -> NativeOp:
    """The native op `name`, which makes `out` of rows of `values` ("gate?": may be missing)."""
    notes = values if isinstance(values, Mapping) else dict.fromkeys(values, "")
    names = [value.rstrip("?") for value in notes]
    return NativeOp(
        name,
        pointers={
            **{value: f"f32{note}" for value, note in notes.items()},
            **constants,
            **STATE_POINTERS,
            "out": "f32",
        },
        ints={**ints, **{f"{n}_stride?": "default its columns" for n in names}, **STATE_INTS},
        floats=floats or {},
        columns=("block_table",),
        arguments=strides,
        rows=dict.fromkeys((*names, "out"), TOKENS),
    )
