"""Minimum work of each operation of a step, and the time it takes at the machine's limits.

The roofline of an operation is the longer of two times: reading its weights or KV cache at the
speed of a simple loop, and its multiply-adds at the peak rate of a loop in registers. Operations on
activations alone stay in the caches and have no roofline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from galley.kernels.ops import KVLayer, LatentLayer, StateLayer
from galley.kernels.ops.definition import output
from galley.kernels.ops.elementwise import FUNCTIONS
from galley.kernels.ops.gated_delta_rule import TERMS
from galley.kernels.program import LOGITS, SEQUENCES, Kind, Node, PackedExperts, Symbol
from galley.kernels.weight_format import WeightFormat
from galley.kernels.weights import PackedWeight
from galley.kv.format import KVFormat
from galley.layers.shapes import ShapeWeight
from galley.planning.limits import MachineLimits

#: Rows that weights are multiplied with → number format of the multiply-adds.
_ARITHMETIC = {Kind.f32: "f32", Kind.bf16: "bf16"} | dict.fromkeys(
    (Kind.q8, Kind.q16, Kind.q8_row), "int8"
)


class Load(Protocol):
    """Size of a step, summed over all rows.

    Attributes:
        sequences: rows.
        tokens: new tokens.
        logits: rows of logits.
        visible: pairs of a new token and a token it attends to.
        cached: tokens whose K and V are read, including the new ones.
    """

    @property
    def sequences(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def logits(self) -> int: ...
    @property
    def visible(self) -> int: ...
    @property
    def cached(self) -> int: ...


@dataclass(frozen=True)
class Cache:
    """KV cache bytes per token and layer, and the format of its numbers."""

    token_bytes: float
    numbers: KVFormat

    @property
    def arithmetic(self) -> str:
        return "f32" if self.numbers.name == "float32" else "bf16"


@dataclass(frozen=True)
class Work:
    """Memory bytes and arithmetic of an operation (a multiply-add counts as two operations).

    Attributes:
        arithmetic: number format of its multiply-adds.
        weights: format of its weights and of the rows that they are multiplied with, by which its
            speed is measured; "" = it has none.
        matrix: `weights` with their shape, for which a speed of its own may be measured.
        rows: that each weight is multiplied with.
        elements: of activations that it reads and writes, if it does nothing else.
    """

    label: str
    bytes: float = 0.0
    operations: float = 0.0
    arithmetic: str = "f32"
    weights: str = ""
    matrix: str = ""
    rows: float = 0.0
    elements: float = 0.0

    def roofline(self, limits: MachineLimits) -> float:
        """Minimum seconds; 0 if the operation has no roofline."""
        peak = limits.peak[self.arithmetic] or limits.peak["f32"]
        return max(self.bytes / limits.read, self.operations / peak)


def work_of(node: Node | None, load: Load, cache: Cache) -> Work:
    """Work of an operation; None means sampling."""
    if node is None:
        return Work("sample")
    weight = node.constants.get("weight")
    if node.op == "linear" and isinstance(weight, PackedWeight | ShapeWeight):
        return _linear(node, weight, load)
    if node.op == "attention" and isinstance(node.layer, KVLayer):
        layer, heads = node.layer, node.ints["heads"]
        return Work(
            f"attention {heads}/{layer.kv_heads} heads of {layer.head_dim}",
            bytes=load.cached * cache.token_bytes,
            operations=4 * load.visible * heads * layer.head_dim,
            arithmetic=cache.arithmetic,
            weights=f"attention {cache.numbers.name}",
            rows=load.tokens / max(load.sequences, 1),
        )
    if node.op == "attention" and isinstance(node.layer, LatentLayer):
        return _latent_attention(node, node.layer, load, cache)
    for constant in node.constants.values():
        if isinstance(constant, PackedExperts):
            return _experts(node, constant, load)
    if isinstance(node.layer, StateLayer):
        return _state(node, node.layer, load)
    elements = sum(_elements(symbol, load) for symbol in node.values.values())
    if node.op == "embedding":
        return Work("embedding", elements=elements)
    kinds = [symbol.kind.name for symbol in node.writes.values()]
    return Work(f"{node.op} to {'+'.join(kinds)}" if kinds else node.op, elements=elements)


def _elements(symbol: Symbol, load: Load) -> float:
    rows = load.logits if symbol.buffer.rows in (LOGITS, SEQUENCES) else load.tokens
    return float(rows * symbol.buffer.rows.times * symbol.columns)


def weights_key(fmt: WeightFormat, rows: str) -> str:
    """Name of the speed of weights of a format, multiplied with rows of a kind."""
    if fmt.is_dense:
        return fmt.name
    parts = [f"{fmt.name}/{fmt.group or 'row'}", fmt.scale, fmt.offset, fmt.table, f"x {rows}"]
    return " ".join(part for part in parts if part not in ("zero", "none"))


#: Multiply-adds for each number of a state and token; in `selective_scan` nine make an exponential.
_STATE_STEPS = {"causal_conv": 1, "ssd_scan": 2, "selective_scan": 11}
#: Terms that a token adds to the state of a delta rule.
_DELTA_TERMS = {"gated_delta_rule": 1, "wkv7": 2}


def _state(node: Node, layer: StateLayer, load: Load) -> Work:
    """A state is read and written once a step, that of a delta rule as `_delta_rule` says; and the
    constants are read."""
    numbers = layer.units * layer.unit_size
    moved = 2.0 * numbers
    if node.op in _DELTA_TERMS:
        numbers, moved, steps = _delta_rule(node)
    else:
        steps = _STATE_STEPS[node.op] * numbers
    constants = [c.nbytes for c in node.constants.values() if isinstance(c, np.ndarray)]
    return Work(
        f"{node.op} of {numbers:,} numbers",
        bytes=load.logits * 4 * moved + sum(constants),
        operations=2 * load.tokens * steps,
    )


def _delta_rule(node: Node) -> tuple[int, float, float]:
    """Numbers of all heads, those that are read or written in a step, multiply-adds of a token.

    For a token each number is read with two vectors and takes up the token's terms; every few
    tokens it decays and is written. Of `TERMS` terms half are there on average: these and the
    decays of the keys are read, the token's terms and the decays are written. The two vectors are
    multiplied with the terms before them, `TERMS` in all on average, and the products with their
    values. The rest is exponentials of nine multiply-adds and what is made of them: for each key
    that decays by itself 27 of a softplus and an exponential; in RWKV 7 for each number of the
    token's vectors 52 (14 of them mix the value with the first layer's) and 7 of the norm.
    """
    ints, terms = node.ints, _DELTA_TERMS[node.op]
    keys = ints["keys" if "keys" in ints else "size"]
    values, tokens = ints.get("values", keys), TERMS // terms
    steps = (2 + terms + 1 / tokens) * keys * values + TERMS * (keys + values)
    if node.op == "wkv7":
        steps += (59 if "mix" in node.reads else 45) * keys
    elif ints.get("by_key"):
        steps += 27 * keys
    moved = (1 + 1 / tokens) * keys * values
    moved += ((TERMS - terms) / 2 + terms) * (keys + values) + 2 * keys
    return ints["heads"] * keys * values, ints["heads"] * moved, ints["heads"] * steps


def _latent_attention(node: Node, layer: LatentLayer, load: Load, cache: Cache) -> Work:
    """A token's key is read once for all heads; a part of it is the value too."""
    heads = node.ints["heads"]
    return Work(
        f"attention {heads} heads on latents of {layer.rank}+{layer.rope_dim}",
        bytes=load.cached * layer.cache(cache.numbers).token_bytes,
        operations=2 * load.visible * heads * (layer.head_dim + layer.rank),
        arithmetic=cache.arithmetic,
    )


def _experts(node: Node, experts: PackedExperts, load: Load) -> Work:
    """Of experts that tokens choose at random, so many are read as are expected to be chosen."""
    _, n, k = experts.shape
    count, top_k = experts.experts, experts.top_k
    chosen = 1 - (1 - top_k / count) ** load.tokens
    fmt, rows = experts.weights[0].format, node.reads["x"]
    each = len(experts.weights) // count
    return Work(
        f"{node.op} {fmt.name} {k}→{each * n}, {top_k} of {count}",
        bytes=chosen * sum(weight.num_bytes for weight in experts.weights),
        operations=2 * load.tokens * top_k * each * n * k,
        arithmetic=_ARITHMETIC[rows.kind],
        weights=weights_key(fmt, rows.kind.name),
        rows=load.tokens * top_k / (count * chosen),
    )


def _linear(node: Node, weight: PackedWeight | ShapeWeight, load: Load) -> Work:
    n, k = weight.shape
    rows = load.logits if output(node).buffer.rows == LOGITS else load.tokens
    fused = ("", " + silu·mul", " + gelu·mul")[node.ints.get("epilogue", 0)]
    fused += f" + {FUNCTIONS[node.ints['function']]}" if "function" in node.ints else ""
    fused += " + add" if node.ints.get("accumulate") else ""
    weights = weights_key(weight.format, node.reads["x"].kind.name)
    return Work(
        f"linear {weight.format.name} {k}→{n}{fused}",
        bytes=weight.num_bytes,
        operations=2 * rows * n * k,
        arithmetic=_ARITHMETIC[node.reads["x"].kind],
        weights=weights,
        matrix=f"{weights} {k}→{n}",
        rows=rows,
    )
