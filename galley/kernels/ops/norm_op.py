"""Code shared by the norms of rows, or of each head by itself."""

from __future__ import annotations

from collections.abc import Mapping

from galley.kernels.ops.definition import WHOLE_ROWS, NativeOp, output, whole
from galley.kernels.program import Dim, Node


def _arguments(node: Node) -> dict[str, int | Dim]:
    x, out = node.values["x"], whole(output(node))
    n = node.ints["n"] if "n" in node.ints else node.constants["weight"].shape[0]
    rounded = node.writes.get("rounded")
    return {
        **({} if rounded is None else {"rounded_kind": int(whole(rounded).kind)}),
        "n": n,
        "heads": out.columns // n,
        "x_stride": x.buffer.columns,
        "rows": out.buffer.rows,
        "out_kind": int(out.kind),
    }


def norm_native(
    name: str,
    constants: Mapping[str, str],
    ints: Mapping[str, str] | None = None,
    in_place: bool = False,
) -> NativeOp:
    """The native op `name`, with the arguments that all of these share."""
    return NativeOp(
        name,
        pointers={"x": "f32", "add?": "f32, x += add first, written back", **constants, "out": ""},
        ints={
            "n": "",
            "heads?": "default 1: vectors of n columns, each normalised by itself",
            **(ints or {}),
            "x_stride?": "default heads * n",
            "rows?": "dimension, default tokens",
            "out_kind": "",
        },
        floats={"eps": ""},
        arguments=_arguments,
        stores=WHOLE_ROWS,
        in_place=in_place,
    )
