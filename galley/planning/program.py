"""`PlannedModel`: what a model needs and computes, known before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from galley.config import EngineConfig, ModelInfo
from galley.config.cores import usable_cores
from galley.config.resolve import from_kwargs
from galley.errors import ModelError
from galley.kernels import _native
from galley.kernels.arena import ArenaPlan, plan_arena
from galley.kernels.backend import Dense, StepLimits, kv_layout
from galley.kernels.cpu import logit_stride
from galley.kernels.ops import KVLayer
from galley.kernels.program import Buffer, Node, PackedExperts, Symbol
from galley.kernels.weight_format import WeightFormat
from galley.kv.format import KVFormat
from galley.kv.layout import KVLayout
from galley.layers.shapes import ShapeWeight
from galley.loader import Checkpoint, open_checkpoint, read_model_info, resolve_source
from galley.models.dummy import DummyCheckpoint
from galley.models.footprint import Footprint, kv_layers, measure, program, weight_bytes
from galley.runner.device import dense_format
from galley.runner.kv_format import kv_format

#: Bytes of the pages with which the system backs an engine's larger arrays.
_LARGE_PAGE = 2 << 20


class Sizes(NamedTuple):
    """Sizes of a model, as far as the speed of its kernels depends on them. `weights`: bytes."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    weights: int


class PlannedModel(msgspec.Struct, frozen=True):
    """A model as an engine of this configuration would hold it.

    Attributes:
        name: as the user gave it.
        nodes: of the program of a step.
        weight_bytes: of the packed weights.
        numbers, layout: of the KV cache.
        threads: that an engine would compute with on this machine.
        has_weights: the checkpoint is here; otherwise only its config is known, and weights of a
            quantised checkpoint are taken to be 16 bits.
    """

    name: str
    info: ModelInfo
    nodes: list[Node]
    weight_bytes: int
    numbers: KVFormat
    layout: KVLayout
    footprint: Footprint
    threads: int
    has_weights: bool

    @property
    def formats(self) -> list[WeightFormat]:
        """Of its weights, those with the most numbers first."""
        counts: dict[WeightFormat, int] = {}
        for weight in self._matrices():
            n, k = weight.shape
            counts[weight.format] = counts.get(weight.format, 0) + n * k
        return sorted(counts, key=lambda fmt: -counts[fmt])

    def _matrices(self) -> Iterator[ShapeWeight]:
        """Weights that rows are multiplied with."""
        for node in self.nodes:
            for constant in node.constants.values():
                for weight in (
                    constant.weights if isinstance(constant, PackedExperts) else (constant,)
                ):
                    if isinstance(weight, ShapeWeight) and node.op != "embedding":
                        yield weight

    @property
    def hidden(self) -> int:
        """Columns of the residual stream."""
        return next(n.writes["out"].columns for n in self.nodes if n.op == "embedding")

    @property
    def sizes(self) -> Sizes:
        """Attention as in its first layer; of common proportions where there is none."""
        inner = max(weight.shape[1] for weight in self._matrices())
        vocab = self.info.vocab_size
        layers = [n for n in self.nodes if n.op == "attention" and isinstance(n.layer, KVLayer)]
        if not layers:
            heads = max(self.hidden // 64, 1)
            return Sizes(self.hidden, inner, heads, 1, 64, 8, vocab, self.weight_bytes)
        kv = cast(KVLayer, layers[0].layer)
        of_heads = layers[0].ints["heads"], kv.kv_heads, kv.head_dim
        return Sizes(self.hidden, inner, *of_heads, len(layers), vocab, self.weight_bytes)

    def activation_bytes(self, limits: StepLimits) -> int:
        """Buffers of the largest step, as the CPU backend lays them out."""
        return self._arena(limits).size + self._logit_bytes(limits.logits)

    def touched_bytes(self, limits: StepLimits, largest: StepLimits) -> int:
        """Those of the buffers' bytes that steps of at most `largest` take: whole large pages."""
        arena = self._arena(limits)
        pages: set[int] = set()
        for buffer, span in arena.spans.items():
            end = span.start + self._buffer_bytes(buffer, largest)
            pages.update(range(span.start // _LARGE_PAGE, -(-end // _LARGE_PAGE)))
        logits = -(-self._logit_bytes(largest.logits) // _LARGE_PAGE) * _LARGE_PAGE
        return min(len(pages) * _LARGE_PAGE, arena.size) + logits

    def _arena(self, limits: StepLimits) -> ArenaPlan:
        return plan_arena(self.nodes, lambda buffer: self._buffer_bytes(buffer, limits))

    @property
    def _logits(self) -> Symbol:
        return next(s for n in reversed(self.nodes) for s in n.writes.values())

    def _logit_bytes(self, rows: int) -> int:
        return 4 * rows * logit_stride(self._logits.columns)

    def _buffer_bytes(self, buffer: Buffer, limits: StepLimits) -> int:
        if buffer is self._logits.buffer:  # it outlives the step, so it has a place of its own
            return 0
        sizes = {"tokens": limits.tokens, "sequences": limits.rows, "logits": limits.logits}
        rows = sizes[buffer.rows.base] * buffer.rows.times
        return rows * _native.activation_bytes(int(buffer.kind), buffer.columns)


def planned_model(engine: dict[str, Any]) -> PlannedModel:
    """Read what a plan needs of a checkpoint: its config, and the headers of its weights if they
    are here.

    Args:
        engine: engine flags by their Python names. `model` may also be a config.json.

    Raises:
        ModelError: the model cannot be found, or is not supported.
    """
    config = from_kwargs(engine, "server")
    checkpoint, has_weights = _checkpoint(config)
    info = checkpoint.model_info
    if info.is_encoder or info.head:
        raise ModelError(
            f"{info.architecture} makes vectors or scores, and a plan is for models that generate "
            "text. `galley inspect` shows its size.",
            field="model",
        )
    dense: Dense = dense_format(config.model.dtype, info.dtype)
    layers = kv_layers(info)
    numbers = kv_format(config.cache, dense, info, layers)
    quantized = config.model.quantized_activations
    return PlannedModel(
        name=config.model.model or "SmolLM2-135M-Instruct (built in)",
        info=info,
        nodes=program(checkpoint, dense, numbers, quantized),
        weight_bytes=weight_bytes(checkpoint, dense),
        numbers=numbers,
        layout=kv_layout(layers, numbers, config.cache.block_size, config.cache.state_interval),
        footprint=measure(info),
        threads=config.device.num_threads or usable_cores(),
        has_weights=has_weights,
    )


def _checkpoint(config: EngineConfig) -> tuple[Checkpoint, bool]:
    """The checkpoint, and whether its weights are here. Of a hub name no weights are fetched."""
    model, load = config.model, config.load
    path = Path(model.model).expanduser()
    here = not model.model or (path.exists() and _has_weights(path))
    if here and load.load_format != "dummy":
        return open_checkpoint(resolve_source(model, load)), True
    if path.is_file():
        model = replace(model, model=str(path.parent))
    source = resolve_source(model, replace(load, load_format="dummy"))
    info = read_model_info(source)
    return DummyCheckpoint(replace(info, quantization=None)), False


def _has_weights(path: Path) -> bool:
    ends = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
    return any(file.name.endswith(ends) for file in (path.iterdir() if path.is_dir() else [path]))
