"""What a model takes, known before its weights are read: it is built from shapes and recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from galley.config import ModelInfo
from galley.kernels.ops import KVLayer
from galley.kernels.program import Kind, Node, Rows
from galley.kernels.recorder import record
from galley.layers.shapes import ShapeSource, ShapeWeight
from galley.models.decoder import Stage
from galley.models.registry import model_spec


@dataclass(frozen=True)
class Footprint:
    """Sizes of a whole model.

    Attributes:
        tensors: name → shape of every tensor that the model reads from a checkpoint.
        kv_layers: caches of its layers, in order.
        token_weights: weights that each token is multiplied with.
        logit_weights: weights that each logit row is multiplied with.
        attention_width: query heads × head size, summed over the layers.
    """

    tensors: Mapping[str, tuple[int, ...]]
    kv_layers: Sequence[KVLayer]
    token_weights: int
    logit_weights: int
    attention_width: int

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())

    def kv_token_bytes(self, itemsize: int) -> int:
        """Bytes of one token in the KV cache, all layers together."""
        return sum(2 * la.kv_heads * la.head_dim * itemsize for la in self.kv_layers)

    def flops(self, context: int) -> int:
        """Operations to decode one token that sees `context` tokens, windows not considered."""
        weights = self.token_weights + self.logit_weights
        return 2 * weights + 4 * self.attention_width * context


def measure(model_info: ModelInfo) -> Footprint:
    """Raises ModelError if the model is not supported."""
    source = ShapeSource()
    model = model_spec(model_info).build(source, Stage(max_positions=1))
    nodes, _ = record(model, Kind.bf16)
    return Footprint(
        tensors=source.tensors,
        kv_layers=list(model.kv_layers),
        token_weights=sum(_weights(node, Rows.tokens) for node in nodes),
        logit_weights=sum(_weights(node, Rows.logits) for node in nodes),
        attention_width=sum(_attention_width(node) for node in nodes),
    )


def kv_layers(model_info: ModelInfo) -> list[KVLayer]:
    """The KV caches of a whole model's layers, in order."""
    return list(model_spec(model_info).build(ShapeSource(), Stage(max_positions=1)).kv_layers)


def tensor_shapes(model_info: ModelInfo) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a checkpoint that is not quantised."""
    source = ShapeSource()
    model_spec(model_info).build(source, Stage(max_positions=1))
    return source.tensors


def _weights(node: Node, rows: Rows) -> int:
    """Weights that a node multiplies each of its rows with, if it has rows of this kind."""
    out = node.writes.get("out")
    if node.op == "embedding" or out is None or out.buffer.rows != rows:
        return 0
    weights: list[object] = list(node.constants.values())
    return sum(math.prod(w.shape) for w in weights if isinstance(w, ShapeWeight))


def _attention_width(node: Node) -> int:
    if node.op != "attention" or node.layer is None:
        return 0
    return node.ints["heads"] * node.layer.head_dim
