"""Time of an operation's PyTorch reference (`kernels.reference`) at the same shape, in float32.

A fused operation is timed as the sequence of reference operations it replaces.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from galley.kernels.ops import KVLayer, Ops
from galley.kernels.ops.attention import attend, visible_positions
from galley.kernels.program import LOGITS, Node
from galley.kernels.reference import ReferenceBackend, ReferenceOps
from galley.kernels.weights import PackedWeight
from galley.planning.steps import Shape

_REPETITIONS = 3
_reference, _tensor = Ops(ReferenceOps()), ReferenceBackend().constant


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def seconds(node: Node, shape: Shape) -> float | None:
    """Median seconds of a few runs; None for an operation without a reference."""
    make = _DEFINITIONS.get(node.op)
    if make is None:
        return None
    run = make(node, shape)
    times = []
    for _ in range(_REPETITIONS + 1):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


def _rows(node: Node, name: str, shape: Shape) -> int:
    of_logits = node.values[name].buffer.rows == LOGITS
    return shape.rows if of_logits else shape.tokens


def _linear(node: Node, shape: Shape) -> Callable[[], object]:
    weight = node.constants["weight"]
    assert isinstance(weight, PackedWeight)
    n, k = weight.shape
    x = _tensor(_random(_rows(node, "out", shape), k))
    weights: list[Any] = [_tensor(_random(n, k))]
    if epilogue := node.ints.get("epilogue"):
        act = _reference.silu_and_mul if epilogue == 1 else _reference.gelu_and_mul
        return lambda: act(_reference.linear(x, weights), False)
    if node.ints.get("accumulate"):
        old = _tensor(_random(x.shape[0], n))
        return lambda: _reference.add(old, _reference.linear(x, weights))
    return lambda: _reference.linear(x, weights)


def _rms_norm(node: Node, shape: Shape) -> Callable[[], object]:
    columns = node.values["x"].columns
    x = _tensor(_random(_rows(node, "x", shape), columns))
    weight = _tensor(_random(columns))
    if "add" in node.values:
        return lambda: _reference.rms_norm(_reference.add(x, x), weight, 1e-5)
    return lambda: _reference.rms_norm(x, weight, 1e-5)


def _silu_mul(node: Node, shape: Shape) -> Callable[[], object]:
    x = _tensor(_random(_rows(node, "x", shape), node.values["x"].columns))
    return lambda: _reference.silu_and_mul(x, False)


def _add(node: Node, shape: Shape) -> Callable[[], object]:
    x = _tensor(_random(_rows(node, "x", shape), node.values["x"].columns))
    return lambda: _reference.add(x, x)


def _attention(node: Node, shape: Shape) -> Callable[[], object]:
    layer = node.layer
    assert isinstance(layer, KVLayer)
    length = shape.context + shape.new
    q = _tensor(_random(shape.new, node.ints["heads"] * layer.head_dim))
    keys, values = (_tensor(_random(length, layer.kv_heads, layer.head_dim)) for _ in range(2))
    visible = visible_positions(shape.context, length, layer)
    scale = layer.head_dim**-0.5

    def run() -> None:
        for _ in range(shape.rows):
            attend(q, keys, values, visible, scale)

    return run


_DEFINITIONS: dict[str, Callable[[Node, Shape], Callable[[], object]]] = {
    "linear": _linear,
    "rms_norm": _rms_norm,
    "silu_and_mul": _silu_mul,
    "add": _add,
    "attention": _attention,
}
