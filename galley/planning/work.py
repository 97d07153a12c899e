"""Minimum work of each operation of a step, and the time it takes at the machine's limits.

The roofline of an operation is the longer of two times: reading its weights or KV cache at the
speed of a simple loop, and its multiply-adds at the peak rate of a loop in registers. Operations on
activations alone stay in the caches and have no roofline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from galley.kernels.ops import KVLayer, LatentLayer, StateLayer
from galley.kernels.program import LOGITS, Node, PackedExperts
from galley.kernels.weights import PackedWeight
from galley.kv.format import KVFormat
from galley.planning.limits import MachineLimits

#: Weight format → number format of its multiply-adds.
_CODES = ("i2", "i3", "i4", "i5", "i6", "i8")
_ARITHMETIC = {"f32": "f32", "bf16": "bf16"} | dict.fromkeys(_CODES, "int8")


class Load(Protocol):
    """Size of a step, summed over all rows.

    Attributes:
        tokens: new tokens.
        logits: rows of logits.
        visible: pairs of a new token and a token it attends to.
        cached: tokens whose K and V are read, including the new ones.
    """

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
    """Memory bytes and arithmetic of an operation (a multiply-add counts as two operations)."""

    label: str
    bytes: float = 0.0
    operations: float = 0.0
    arithmetic: str = "f32"

    def roofline(self, limits: MachineLimits) -> float:
        """Minimum seconds; 0 if the operation has no roofline."""
        peak = limits.peak[self.arithmetic] or limits.peak["f32"]
        return max(self.bytes / limits.read, self.operations / peak)


def work_of(node: Node | None, load: Load, cache: Cache) -> Work:
    """Work of an operation; None means sampling."""
    if node is None:
        return Work("sample")
    weight = node.constants.get("weight")
    if node.op == "linear" and isinstance(weight, PackedWeight):
        return _linear(node, weight, load)
    if node.op == "attention" and isinstance(node.layer, KVLayer):
        layer, heads = node.layer, node.ints["heads"]
        return Work(
            f"attention {heads}/{layer.kv_heads} heads of {layer.head_dim}",
            bytes=load.cached * cache.token_bytes,
            operations=4 * load.visible * heads * layer.head_dim,
            arithmetic=cache.arithmetic,
        )
    if node.op == "attention" and isinstance(node.layer, LatentLayer):
        return _latent_attention(node, node.layer, load, cache)
    for constant in node.constants.values():
        if isinstance(constant, PackedExperts):
            return _experts(node, constant, load)
    if isinstance(node.layer, StateLayer):
        return _state(node.op, node.layer, load)
    if node.op == "embedding":
        return Work("embedding")
    kinds = [symbol.kind.name for symbol in node.writes.values()]
    return Work(f"{node.op} to {'+'.join(kinds)}" if kinds else node.op)


#: Multiply-adds for each number of a state and token; in `selective_scan` nine make an exponential.
_STATE_STEPS = {
    "causal_conv": 1,
    "ssd_scan": 2,
    "selective_scan": 11,
    "gated_delta_rule": 3,
    "wkv7": 4,
}


def _state(op: str, layer: StateLayer, load: Load) -> Work:
    """A state is read and written once a step."""
    numbers = layer.units * layer.unit_size
    return Work(
        f"{op} of {numbers:,} numbers",
        bytes=load.logits * 2 * 4 * numbers,
        operations=2 * load.tokens * _STATE_STEPS[op] * numbers,
    )


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
    name = experts.weights[0].format.name
    each = len(experts.weights) // count
    return Work(
        f"{node.op} {name} {k}→{each * n}, {top_k} of {count}",
        bytes=chosen * sum(weight.data.nbytes for weight in experts.weights),
        operations=2 * load.tokens * top_k * each * n * k,
        arithmetic=_ARITHMETIC[name],
    )


def _linear(node: Node, weight: PackedWeight, load: Load) -> Work:
    n, k = weight.shape
    rows = load.logits if node.values["out"].buffer.rows == LOGITS else load.tokens
    fused = ("", " + silu·mul", " + gelu·mul")[node.ints.get("epilogue", 0)]
    fused += " + add" if node.ints.get("accumulate") else ""
    return Work(
        f"linear {weight.format.name} {k}→{n}{fused}",
        bytes=weight.data.nbytes,
        operations=2 * rows * n * k,
        arithmetic=_ARITHMETIC[weight.format.name],
    )
