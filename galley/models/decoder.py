"""The decoder that most families share: layers on a residual stream.

    h = embed(tokens)
    for each layer:   h += mixer(norm(h));   h += mlp(norm(h))
    logits = head(norm(h))

A family describes a model with a `DecoderSpec`: each layer by itself, with the names of its
tensors. Layers may differ. Knows no config file, no tensor name and no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.embedding import Embedding, LMHead
from galley.layers.norm import NormSpec, RMSNorm
from galley.layers.questions import Part
from galley.layers.shapes import ShapeSource
from galley.layers.weights import WeightSource


class Mixer(Protocol):
    """The part of a layer that looks at other tokens: x [T, hidden] → [T, hidden]."""

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value: ...


class FeedForward(Protocol):
    """The part of a layer that computes each token by itself: x [T, hidden] → [T, hidden]."""

    def __call__(self, ops: Ops, x: Value) -> Value: ...


class MixerSpec(Protocol):
    """Sizes and tensors of a mixer (`layers.attention.AttentionSpec`, …)."""

    def build(self, context: BuildContext) -> Mixer: ...


class FeedForwardSpec(Protocol):
    """Sizes and tensors of a feed-forward block (`layers.mlp.MLPSpec`, …)."""

    def build(self, context: BuildContext) -> FeedForward: ...


@dataclass(frozen=True)
class LayerSpec:
    """One layer: its two blocks, and the norm of each block's input."""

    mixer: MixerSpec
    mlp: FeedForwardSpec
    mixer_norm: NormSpec
    mlp_norm: NormSpec


@dataclass(frozen=True)
class Stage:
    """The part of a model that a process builds.

    Attributes:
        max_positions: longest sequence that will ever be run, for the rotary tables.
        start, end: its layers, [start, end); end None = to the last.
    """

    max_positions: int
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """A whole model, before it is shared over ranks.

    Attributes:
        embedding: the tensor [vocab, hidden].
        head: the tensor [vocab, hidden]; None = the embedding's weight is used (tied).
        ignored: prefixes of tensors that the checkpoint may have and the model does not use.
    """

    embedding: Part
    layers: Sequence[LayerSpec]
    norm: NormSpec
    head: Part | None
    ignored: tuple[str, ...] = ()

    def build(self, source: WeightSource, stage: Stage) -> Decoder:
        """The stage's part of the model. Raises ModelError as the source does."""
        return Decoder(self, source, stage)


class DecoderLayer:
    """One layer: hidden [T, H] → [T, H]."""

    def __init__(self, spec: LayerSpec, context: BuildContext) -> None:
        self.mixer_norm = RMSNorm(context.source, spec.mixer_norm)
        self.mixer = spec.mixer.build(context)
        self.mlp_norm = RMSNorm(context.source, spec.mlp_norm)
        self.mlp = spec.mlp.build(context)

    def __call__(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        hidden = ops.add(hidden, self.mixer(ops, self.mixer_norm(ops, hidden), ctx))
        return ops.add(hidden, self.mlp(ops, self.mlp_norm(ops, hidden)))


class Decoder:
    """Layers [start, end) of a decoder; the first stage embeds, the last has the head.

    Attributes:
        kv_layers: the caches that this stage's layers need, in order.
    """

    def __init__(self, spec: DecoderSpec, source: WeightSource, stage: Stage) -> None:
        num_layers = len(spec.layers)
        end = num_layers if stage.end is None else stage.end
        if not 0 <= stage.start < end <= num_layers:
            raise ModelError(f"layers {stage.start} to {end} of a model of {num_layers}")
        context = BuildContext(source, stage.max_positions)
        self._first, self._last = stage.start == 0, end == num_layers
        self.vocab_size = spec.embedding.num_rows
        self.kv_layers = context.kv_layers
        if self._first or (self._last and spec.head is None):
            self.embedding = Embedding.load(source, spec.embedding)
        self.layers = [DecoderLayer(layer, context) for layer in spec.layers[stage.start : end]]
        if self._last:
            self.norm = RMSNorm(source, spec.norm)
            self.head = (
                LMHead(self.embedding.weight)
                if spec.head is None
                else LMHead.load(source, spec.head)
            )
        for prefix in (*spec.ignored, *_names_outside(spec, stage.start, end)):
            source.ignore_unused(prefix)

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value:
        """[T, H]: the input of the first stage's `forward`."""
        assert self._first
        return self.embedding(ops, ctx.token_ids)

    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        """[T, H]: the residual stream after this stage's layers, not normalised."""
        for layer in self.layers:
            hidden = layer(ops, hidden, ctx)
        return hidden

    def final_norm(self, ops: Ops, hidden: Value) -> Value:
        """[T, H]: the result of `forward`, normalised as for the head; only on the last stage."""
        assert self._last
        return self.norm(ops, hidden)

    def logits(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        """[L, vocab] of the positions that yield logits; only on the last stage."""
        assert self._last
        # A row's norm depends on the row alone, so selecting first saves the others' work.
        selected = ops.select_rows(hidden, ctx.logit_index)
        return self.head(ops, self.norm(ops, selected))


def _names_outside(spec: DecoderSpec, start: int, end: int) -> list[str]:
    """Prefixes of the tensors that belong to stages other than layers [start, end)."""
    if start == 0 and end == len(spec.layers):
        return []
    shapes = ShapeSource()
    context = BuildContext(shapes, 1)
    for layer in (*spec.layers[:start], *spec.layers[end:]):
        DecoderLayer(layer, context)
    if start > 0:
        Embedding.load(shapes, spec.embedding)
    if end < len(spec.layers):
        RMSNorm(shapes, spec.norm)
        if spec.head is not None:
            LMHead.load(shapes, spec.head)
    # A quantised matrix has further tensors under its name.
    return [name.removesuffix("weight") for name in shapes.tensors]
