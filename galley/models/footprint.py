"""Size and cost of a model before its weights are read: it is built from shapes and recorded."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from msgspec.structs import replace

from galley.config import ModelInfo
from galley.config.engine import QuantizedActivations
from galley.errors import ModelError
from galley.kernels.backend import Dense
from galley.kernels.ops import CacheLayer, KVLayer, LatentLayer, Weight
from galley.kernels.passes import FUSIONS, apply
from galley.kernels.program import LOGITS, TOKENS, Dim, Node, PackedExperts
from galley.kernels.recorder import record
from galley.kernels.weight_format import WeightFormat
from galley.kernels.weights import pack
from galley.kv.format import KVFormat
from galley.layers.shapes import ShapeSource, ShapeWeight
from galley.layers.weight_specs import Matrix, Part, Stack, parts_of
from galley.loader.tensor import DENSE_DTYPES, Checkpoint, RawTensor
from galley.models.decoder import FeedForwardSpec, MixerSpec, Stage
from galley.models.registry import model_spec
from galley.quant import ExpertScheme, QuantizedWeight, online_of, scheme_of

#: Rows of a matrix that are packed to find its format: whole blocks of every scheme.
SAMPLE_ROWS = 128


class Footprint(msgspec.Struct, frozen=True):
    """Sizes of a whole model.

    Attributes:
        tensors: name → shape of every tensor that the model reads from a checkpoint.
        kv_layers: caches of its layers, in order.
        idle_weights: weights of the experts that a token does not choose.
        token_weights: weights that each token is multiplied with.
        logit_weights: weights that each logit row is multiplied with.
        attention_width: query heads × head size, summed over the layers.
    """

    tensors: Mapping[str, tuple[int, ...]]
    kv_layers: Sequence[CacheLayer]
    idle_weights: int
    token_weights: int
    logit_weights: int
    attention_width: int

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def active_parameters(self) -> int:
        """Those that one token uses; the embedding counts as a whole."""
        return self.parameters - self.idle_weights

    def kv_token_bytes(self, numbers: KVFormat) -> int:
        """Bytes of one token in the KV cache, all layers together."""
        return sum(layer.cache(numbers).token_bytes for layer in self.kv_layers)

    def state_bytes(self) -> int:
        """Bytes of the recurrent states of one sequence, all layers together, without padding."""
        return sum(layer.cache(KVFormat("float32")).state_bytes for layer in self.kv_layers)

    def flops(self, context: int) -> int:
        """Operations to decode one token that sees `context` tokens, windows not considered."""
        weights = self.token_weights + self.logit_weights
        return 2 * weights + 4 * self.attention_width * context


@runtime_checkable
class HasFootprint(Protocol):
    """A model that cannot be recorded: it gives its sizes itself."""

    def footprint(self) -> Footprint: ...


def layer_kinds(model_info: ModelInfo) -> dict[str, int]:
    """How many layers the model has of each kind, named by their blocks; the most first."""
    kinds = Counter(
        " + ".join(_block_name(block) for block in (layer.mixer, layer.mlp) if block)
        for layer in getattr(model_spec(model_info), "layers", ())
    )
    return dict(kinds.most_common())


def _block_name(block: MixerSpec | FeedForwardSpec) -> str:
    from galley.models.falcon_h1 import BranchesSpec  # a start without it imports none of its ops

    if isinstance(block, BranchesSpec):
        return " and ".join(_block_name(branch.mixer) for branch in block.branches)
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", type(block).__name__.removesuffix("Spec"))
    window = getattr(block, "window", 0)
    return f"{words} (window {window:,})" if window else words


def measure(model_info: ModelInfo) -> Footprint:
    """Raises ModelError if the model is not supported."""
    source = ShapeSource()
    model = model_spec(model_info).build(source, Stage(max_positions=1))
    if isinstance(model, HasFootprint):
        return model.footprint()
    nodes, _ = record(model, KVFormat("bfloat16"))
    return Footprint(
        tensors=source.tensors,
        kv_layers=list(model.kv_layers),
        idle_weights=sum(_idle_weights(node) for node in nodes),
        token_weights=sum(_weights(node, TOKENS) + _chosen_weights(node) for node in nodes),
        logit_weights=sum(_weights(node, LOGITS) for node in nodes),
        attention_width=sum(_attention_width(node) for node in nodes),
    )


def weight_bytes(checkpoint: Checkpoint, dense: Dense) -> int:
    """Bytes of a whole model's matrices as the native kernels hold them.

    Args:
        dense: format of weights that are not quantised.

    Raises ModelError if the model or a tensor's format is not supported.
    """
    shapes = PackedShapes(checkpoint, dense)
    model = model_spec(checkpoint.model_info).build(shapes, Stage(max_positions=1))
    if isinstance(model, HasFootprint):
        return model.footprint().parameters * (4 if dense == "f32" else 2)
    return shapes.num_bytes


def program(
    checkpoint: Checkpoint, dense: Dense, numbers: KVFormat, quantized: QuantizedActivations
) -> list[Node]:
    """The program of a step as it will run, fused, with a `ShapeWeight` for each weight.

    Args:
        dense: format of weights that are not quantised.
        numbers: of the KV cache.

    Raises ModelError if the model is not supported, or cannot be recorded.
    """
    info = checkpoint.model_info
    model = model_spec(info).build(PackedShapes(checkpoint, dense), Stage(max_positions=1))
    if isinstance(model, HasFootprint):
        raise ModelError(
            f"{info.architecture} runs through the transformers library: its steps cannot be known "
            "in advance.",
            field="model",
        )
    return apply(record(model, numbers, quantized, dense=dense)[0], FUSIONS)


class PackedShapes(ShapeSource):
    """Shapes with the formats in which the native kernels will hold the weights.

    Formats are found by packing some rows of each kind of matrix; none is read as a whole.

    Attributes:
        num_bytes: of all matrices so far.
    """

    def __init__(self, checkpoint: Checkpoint, dense: Dense) -> None:
        super().__init__()
        self._formats = _Formats(checkpoint, dense)
        self.num_bytes = 0

    def matrix(self, matrix: Matrix) -> list[Weight]:
        self.matrices.append(matrix)
        runs = [(self._formats.of(part, matrix), part.num_rows) for part in parts_of(matrix)[0]]
        weights: list[Weight] = []
        for fmt, run in groupby(runs, key=lambda pair: pair[0]):
            weight = ShapeWeight((sum(n for _, n in run), matrix.num_inputs), fmt)
            self.num_bytes += weight.num_bytes * max(1, matrix.experts)
            weights += [weight] * max(1, matrix.experts)
        return weights


class _Formats:
    """Native formats of a checkpoint's matrices."""

    def __init__(self, checkpoint: Checkpoint, dense: Dense) -> None:
        self._scheme = scheme_of(checkpoint.model_info)
        self._online = online_of(checkpoint.model_info)
        self._rows = _FirstRows(checkpoint)
        self._dense = dense
        self._by_kind: dict[object, WeightFormat] = {}
        self._dtypes: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name in checkpoint.names():
            layer, _, kind = name.rpartition(".")
            self._dtypes[layer].append((kind, checkpoint.header(name).dtype))

    def of(self, part: Part, matrix: Matrix) -> WeightFormat:
        """The format of a part. Matrices whose tensors have equal dtypes have one format."""
        if part.otherwise is not None and part.name not in self._dtypes:
            part = part.otherwise
        n, k = part.shape
        dense: Dense = "f32" if matrix.float32 else self._dense
        if matrix.dense:
            return WeightFormat(dense)
        if part.name not in self._dtypes and part.stack is not None:
            return self._stacked(part.stack, k, dense)
        kind: tuple[object, ...] = (*sorted(self._dtypes[part.name]), k, dense)
        if self._online is not None:
            kind = (*kind, self._online.wants(part.name, k, matrix.experts > 0))
        if kind not in self._by_kind:
            weight = self._scheme.read(part.name, (min(n, SAMPLE_ROWS), k), self._rows)
            if self._online is not None and not matrix.float32:
                # Not zeros, whose scales would fit into fewer bits.
                some = np.resize(np.linspace(-1, 0.9, 97, dtype=np.float32), weight.shape)
                weight = QuantizedWeight(dense=some) if weight.dense is not None else weight
                weight = self._online(part.name, weight, matrix.experts > 0)
            self._by_kind[kind] = pack(weight, dense).format
        return self._by_kind[kind]

    def _stacked(self, stack: Stack, k: int, dense: Dense) -> WeightFormat:
        """Of a tensor of all experts, which is dense if it is not stored as codes."""
        scheme = self._scheme
        if not isinstance(scheme, ExpertScheme) or not scheme.has_experts(stack.name, self._rows):
            return WeightFormat(dense)
        n = stack.shape[2] if stack.transposed else stack.shape[1]
        shape = (stack.shape[0], min(n, SAMPLE_ROWS), k)
        expert = scheme.read_expert(stack.name, shape, 0, self._rows)
        return pack(expert, dense).format


class _FirstRows:
    """The beginnings of a checkpoint's tensors (`quant.Tensors`)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = frozenset(checkpoint.names())

    def has(self, name: str) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return tuple(self._checkpoint.header(name).shape)

    def use(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        if name not in self._names:
            raise ModelError(f"the checkpoint has no tensor {name}")
        dense = DENSE_DTYPES.get(self._checkpoint.header(name).dtype)
        if dense is not None and name.endswith(".weight"):
            # The values do not matter, and a dummy checkpoint would generate the whole tensor.
            return RawTensor(name, shape, dense.name, np.zeros(shape, dense))
        raw = self._checkpoint.tensor(name)
        is_blocks = raw.data.shape != raw.shape
        kept = shape[:1] if is_blocks else shape
        data = raw.data[tuple(slice(n) for n in kept)]
        return replace(raw, shape=shape, data=data, row_order=None)


def kv_layers(model_info: ModelInfo) -> list[CacheLayer]:
    """The KV caches of a whole model's layers, in order."""
    return list(model_spec(model_info).build(ShapeSource(), Stage(max_positions=1)).kv_layers)


def tensor_shapes(model_info: ModelInfo) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a checkpoint that is not quantised."""
    source = ShapeSource()
    model = model_spec(model_info).build(source, Stage(max_positions=1))
    return dict(model.footprint().tensors) if isinstance(model, HasFootprint) else source.tensors


def _weights(node: Node, rows: Dim) -> int:
    """Weights that a node multiplies each of its rows with, if it has rows of this kind."""
    out = node.writes.get("out")
    if node.op == "embedding" or out is None or out.buffer.rows != rows:
        return 0
    weights: list[object] = list(node.constants.values())
    return sum(math.prod(w.shape) for w in weights if isinstance(w, ShapeWeight))


def _experts(node: Node) -> list[PackedExperts]:
    return [c for c in node.constants.values() if isinstance(c, PackedExperts)]


def _chosen_weights(node: Node) -> int:
    """Weights of the experts that a token chooses."""
    return sum(math.prod(e.shape) // e.experts * e.top_k for e in _experts(node))


def _idle_weights(node: Node) -> int:
    """Weights of the others."""
    return sum(math.prod(e.shape) for e in _experts(node)) - _chosen_weights(node)


def _attention_width(node: Node) -> int:
    if node.op != "attention" or not isinstance(node.layer, KVLayer | LatentLayer):
        return 0
    # A latent's elements count twice as elements of keys and of values, the others once.
    values = node.ints.get("value_dim", node.layer.head_dim)
    return node.ints["heads"] * (node.layer.head_dim + values) // 2
