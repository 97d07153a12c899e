"""What an operation of a step must do at least, and the time that this takes the machine.

The roofline of an operation is the longer of: its weights or KV cache read at the speed of a plain
loop, and its multiply-adds at the peak of a loop in registers. Operations on activations alone live
in caches and have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from galley.cli.bench.limits import MachineLimits
from galley.kernels.program import LOGITS, Node
from galley.kernels.weights import PackedWeight

#: Weight format → the multiply-add that meets it.
_ARITHMETIC = {"f32": "f32", "bf16": "bf16"} | dict.fromkeys(("i4", "i5", "i6", "i8"), "int8")


class Load(Protocol):
    """What a step computes, all rows together.

    Attributes:
        tokens: new ones.
        logits: rows of logits.
        visible: pairs of a new token and a token that it may see.
        cached: tokens whose K and V are read, the new ones included.
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
    """The KV cache: bytes of a token in one layer, and the format that dense weights are in."""

    token_bytes: float
    dense: str


@dataclass(frozen=True)
class Work:
    """Bytes from memory and multiply-adds (two operations each) of an operation."""

    label: str
    bytes: float = 0.0
    operations: float = 0.0
    arithmetic: str = "f32"

    def roofline(self, limits: MachineLimits) -> float:
        """Seconds; 0 where the operation has no roofline."""
        peak = limits.peak[self.arithmetic] or limits.peak["f32"]
        return max(self.bytes / limits.read, self.operations / peak)


def work_of(node: Node | None, load: Load, cache: Cache) -> Work:
    """The work of an operation; None is the sampling."""
    if node is None:
        return Work("sample")
    weight = node.constants.get("weight")
    if node.op == "linear" and isinstance(weight, PackedWeight):
        return _linear(node, weight, load)
    if node.op == "attention" and node.layer is not None:
        layer, heads = node.layer, node.ints["heads"]
        return Work(
            f"attention {heads}/{layer.kv_heads} heads of {layer.head_dim}",
            bytes=load.cached * cache.token_bytes,
            operations=4 * load.visible * heads * layer.head_dim,
            arithmetic="bf16" if cache.dense == "bf16" else "f32",
        )
    if node.op == "embedding":
        return Work("embedding")
    kinds = [symbol.kind.name for symbol in node.writes.values()]
    return Work(f"{node.op} to {'+'.join(kinds)}" if kinds else node.op)


def _linear(node: Node, weight: PackedWeight, load: Load) -> Work:
    n, k = weight.shape
    rows = load.logits if node.values["out"].buffer.rows == LOGITS else load.tokens
    fused = " + silu·mul" if node.ints.get("epilogue") else ""
    fused += " + add" if node.ints.get("accumulate") else ""
    return Work(
        f"linear {weight.format.name} {k}→{n}{fused}",
        bytes=weight.data.nbytes,
        operations=2 * rows * n * k,
        arithmetic=_ARITHMETIC[weight.format.name],
    )
