"""Converts a node to the named arguments of its native op (docs/native_ops.md)."""

from __future__ import annotations

from collections.abc import Callable

from galley.kernels.program import Buffer, Constant, Kind, Node, Symbol
from galley.kernels.weights import PackedWeight

#: Bytes of one element, for kinds without scales.
_ITEM_BYTES = {Kind.f32: 4, Kind.bf16: 2}


def _weight(node: Node) -> dict[str, int]:
    weight = node.constants["weight"]
    assert isinstance(weight, PackedWeight)
    return weight.arguments()


def _whole(value: Symbol) -> Symbol:
    """The value; ValueError if it is a column range, which ops without a stride cannot take."""
    if not value.is_whole:
        raise ValueError(f"columns from {value.start} where whole rows are needed")
    return value


def _out(node: Node) -> Symbol:
    return node.updates.get("out") or node.writes["out"]


def _embedding(node: Node) -> dict[str, int]:
    return _weight(node)


def _linear(node: Node) -> dict[str, int]:
    out, x = _out(node), _whole(node.reads["x"])
    return {
        **_weight(node),
        "rows": int(out.buffer.rows),
        "x_kind": int(x.kind),
        "out_kind": int(out.kind),
        "out_stride": out.buffer.columns,
    }


def _quantize(node: Node) -> dict[str, int]:
    x, out = node.reads["x"], _whole(_out(node))
    return {
        "k": x.columns,
        "rows": int(x.buffer.rows),
        "x_stride": x.buffer.columns,
        "out_kind": int(out.kind),
    }


def _rms_norm(node: Node) -> dict[str, int]:
    out = _whole(_out(node))
    _whole(node.values["x"])
    return {"n": out.columns, "rows": int(out.buffer.rows), "out_kind": int(out.kind)}


def _silu_mul(node: Node) -> dict[str, int]:
    out = _whole(_out(node))
    _whole(node.reads["x"])
    return {"n": out.columns, "rows": int(out.buffer.rows), "out_kind": int(out.kind)}


def _rope_kv(node: Node) -> dict[str, int]:
    return {"q_kind": int(_whole(node.writes["q_out"]).kind)}


def _attention(node: Node) -> dict[str, int]:
    return {"q_kind": int(_whole(node.reads["q"]).kind), "out_kind": int(_whole(_out(node)).kind)}


def _select_rows(node: Node) -> dict[str, int]:
    _whole(_out(node))
    return {"n": _whole(node.reads["x"]).columns}


def _add(node: Node) -> dict[str, int]:
    x = _whole(node.updates["x"])
    _whole(node.reads["y"])
    return {"n": x.columns, "rows": int(x.buffer.rows)}


#: Op → its integer arguments that follow from shapes; the others are in the node.
_INTS: dict[str, Callable[[Node], dict[str, int]]] = {
    "embedding": _embedding,
    "linear": _linear,
    "quantize": _quantize,
    "rms_norm": _rms_norm,
    "silu_mul": _silu_mul,
    "rope_kv": _rope_kv,
    "attention": _attention,
    "select_rows": _select_rows,
    "add": _add,
}


def int_arguments(node: Node) -> dict[str, int]:
    """All integer arguments except those of the KV cache."""
    return {**_INTS[node.op](node), **node.ints}


def pointer_arguments(node: Node, address_of: Callable[[Buffer], int]) -> dict[str, int]:
    """All pointer arguments except that of the KV cache."""
    pointers = {name: _constant_address(c) for name, c in node.constants.items()}
    for name, value in node.values.items():
        pointers[name] = address_of(value.buffer)
        if value.start:
            pointers[name] += value.start * _ITEM_BYTES[value.kind]
    return pointers


def _constant_address(constant: Constant) -> int:
    array = constant.data if isinstance(constant, PackedWeight) else constant
    return int(array.ctypes.data)
