"""The decoder that most families share: layers on a residual stream.

    h = embed(tokens)
    for each layer:   h += mixer(norm(h));   h += mlp(norm(h))      (a layer may be another)
    logits = head(norm(h))

A family describes a model with a `DecoderSpec`: each layer by itself, with the names of its
tensors. Layers may differ. Knows no config file, no tensor name and no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, Ops, Value, Weight
from galley.layers.context import BuildContext
from galley.layers.embedding import Embedding, LMHead
from galley.layers.linear import Linear
from galley.layers.norm import Norm, NormSpec
from galley.layers.positions import LearnedPositionsSpec
from galley.layers.scale import Multiplier
from galley.layers.shapes import ShapeSource
from galley.layers.weight_specs import Matrix, Part, Vector
from galley.layers.weights import WeightSource

#: Reads the input of a layer: its number and the value.
Tap = Callable[[int, Value], None]


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


class Layer(Protocol):
    """hidden [T, H] → [T, H]; `hidden` may be overwritten."""

    def __call__(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value: ...


class AnyLayerSpec(Protocol):
    """A layer before it is shared over ranks (`LayerSpec`, `ParallelLayerSpec`, …)."""

    def build(self, context: BuildContext) -> Layer: ...


class LayerSpec(msgspec.Struct, frozen=True):
    """A layer of two blocks, one after the other:

        h += residual * out_norm(block(norm(h)))

    Attributes:
        mixer, mlp: None = the layer has the other block alone.
        mixer_norm, mlp_norm: of each block's input; None = none.
        mixer_out_norm, mlp_out_norm: of each block's output; None = none.
        residual: factor of each block's output.
    """

    mixer: MixerSpec | None
    mlp: FeedForwardSpec | None
    mixer_norm: NormSpec | None
    mlp_norm: NormSpec | None
    mixer_out_norm: NormSpec | None = None
    mlp_out_norm: NormSpec | None = None
    residual: float = 1.0

    def build(self, context: BuildContext) -> DecoderLayer:
        return DecoderLayer(self, context)


class ParallelLayerSpec(msgspec.Struct, frozen=True):
    """A layer whose two blocks read the same h:

        h += mixer(norm(h)) + mlp(mlp_norm(h))

    Attributes:
        mlp_norm: None = both blocks read norm(h).
    """

    mixer: MixerSpec
    mlp: FeedForwardSpec
    norm: NormSpec
    mlp_norm: NormSpec | None = None

    def build(self, context: BuildContext) -> ParallelLayer:
        return ParallelLayer(self, context)


class PostNormLayerSpec(msgspec.Struct, frozen=True):
    """A layer whose norms are of the residual stream itself:

    h = norm(h + mixer(h));   h = mlp_norm(h + mlp(h))
    """

    mixer: MixerSpec
    mlp: FeedForwardSpec
    norm: NormSpec
    mlp_norm: NormSpec

    def build(self, context: BuildContext) -> PostNormLayer:
        return PostNormLayer(self, context)


class Stage(msgspec.Struct, frozen=True):
    """The part of a model that a process builds.

    Attributes:
        max_positions: longest sequence that will ever be run, for the rotary tables.
        start, end: its layers, [start, end); end None = to the last.
    """

    max_positions: int
    start: int = 0
    end: int | None = None


class DecoderSpec(msgspec.Struct, frozen=True):
    """A whole model, before it is shared over ranks.

    Attributes:
        embedding: the tensor [vocab, hidden].
        positions: added to the embedding of the token; None = none.
        embedding_out: projection [hidden, size] of embeddings of another size; None = none.
        embedding_norm: of the sum of the two; None = none.
        embedding_in: projection [hidden, size], with a bias, of the normed sum, where it has
            another size; None = none.
        norm: before the head; None = none.
        head: the tensor [vocab, hidden]; None = the embedding's weight is used (tied).
        head_in: projection [size, hidden] of what the head reads, after the norm; None = none.
        head_bias: the tensor [vocab], in full; None = none.
        ignored: prefixes of tensors that the checkpoint may have and the model does not use.
        further_tokens: embeddings of token ids behind the vocabulary.
        embedding_scale: factor of the embedding.
        logits_scale: factor of the logits.
        logits_soft_cap: logits are soft_cap * tanh(logit / soft_cap); 0 = as they are.
    """

    embedding: Part
    layers: Sequence[AnyLayerSpec]
    norm: NormSpec | None
    head: Part | None
    ignored: tuple[str, ...] = ()
    embedding_scale: float = 1.0
    logits_scale: float = 1.0
    logits_soft_cap: float = 0.0
    positions: LearnedPositionsSpec | None = None
    embedding_norm: NormSpec | None = None
    embedding_in: Part | None = None
    head_bias: str | None = None
    embedding_out: Part | None = None
    head_in: Part | None = None
    further_tokens: tuple[Part, ...] = ()

    def build(self, source: WeightSource, stage: Stage) -> Decoder:
        """The stage's part of the model. Raises ModelError as the source does."""
        return Decoder(self, source, stage)


class DecoderLayer:
    """A `LayerSpec` with its weights."""

    def __init__(self, spec: LayerSpec, context: BuildContext) -> None:
        self.mixer_norm = _norm(spec.mixer_norm, context.source)
        self.mixer = None if spec.mixer is None else spec.mixer.build(context)
        self.mixer_out_norm = _norm(spec.mixer_out_norm, context.source)
        self.mlp_norm = _norm(spec.mlp_norm, context.source)
        self.mlp = None if spec.mlp is None else spec.mlp.build(context)
        self.mlp_out_norm = _norm(spec.mlp_out_norm, context.source)
        self._residual = Multiplier(context.source, spec.residual)

    def __call__(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        if self.mixer is not None:
            out = self.mixer(ops, self.mixer_norm(ops, hidden), ctx)
            hidden = ops.add(hidden, self._residual(ops, self.mixer_out_norm(ops, out)))
        if self.mlp is not None:
            out = self.mlp(ops, self.mlp_norm(ops, hidden))
            hidden = ops.add(hidden, self._residual(ops, self.mlp_out_norm(ops, out)))
        return hidden


class ParallelLayer:
    """A `ParallelLayerSpec` with its weights."""

    def __init__(self, spec: ParallelLayerSpec, context: BuildContext) -> None:
        self.norm = spec.norm.build(context.source)
        self.mlp_norm = None if spec.mlp_norm is None else spec.mlp_norm.build(context.source)
        self.mixer = spec.mixer.build(context)
        self.mlp = spec.mlp.build(context)

    def __call__(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        normed = self.norm(ops, hidden)
        mlp_input = normed if self.mlp_norm is None else self.mlp_norm(ops, hidden)
        hidden = ops.add(hidden, self.mixer(ops, normed, ctx))
        return ops.add(hidden, self.mlp(ops, mlp_input))


class PostNormLayer:
    """A `PostNormLayerSpec` with its weights."""

    def __init__(self, spec: PostNormLayerSpec, context: BuildContext) -> None:
        self.mixer = spec.mixer.build(context)
        self.norm = spec.norm.build(context.source)
        self.mlp = spec.mlp.build(context)
        self.mlp_norm = spec.mlp_norm.build(context.source)

    def __call__(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        hidden = self.norm(ops, ops.add(hidden, self.mixer(ops, hidden, ctx)))
        return self.mlp_norm(ops, ops.add(hidden, self.mlp(ops, hidden)))


def _head(spec: DecoderSpec, source: WeightSource, tied: Weight | None) -> LMHead:
    """The head, with a weight of its own or that of the embedding."""
    if tied is None:
        assert spec.head is not None
        (tied,) = source.matrix(Matrix((spec.head,)))
    # PEFT's name of a head that shares the embedding's weight.
    part = spec.head or replace(spec.embedding, name="lm_head")
    site = source.sites.add_head(part, trained=spec.head_bias is None)
    bias = None
    if spec.head_bias is not None:
        bias = source.vector(Vector((Part(spec.head_bias, (spec.embedding.num_rows,)),)))
    return LMHead(tied, site, bias)


def _projection(part: Part | None, source: WeightSource, bias: bool = False) -> Norm:
    return _unchanged if part is None else Linear(source, Matrix((part,)), bias)


def _norm(spec: NormSpec | None, source: WeightSource) -> Norm:
    return _unchanged if spec is None else spec.build(source)


def _unchanged(ops: Ops, x: Value) -> Value:
    return x


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
        self._start = stage.start
        self.vocab_size = spec.embedding.num_rows
        self.kv_layers = context.kv_layers
        if self._first or (self._last and spec.head is None):
            self.embedding = Embedding.load(source, spec.embedding, spec.further_tokens)
            self._embedding_scale = Multiplier(source, spec.embedding_scale)
        if self._first:
            self._embedding_out = _projection(spec.embedding_out, source)
            self._positions = None if spec.positions is None else spec.positions.build(context)
            self._embedding_norm = _norm(spec.embedding_norm, source)
            self._embedding_in = _projection(spec.embedding_in, source, bias=True)
        self.layers = [layer.build(context) for layer in spec.layers[stage.start : end]]
        if self._last:
            self.norm = _norm(spec.norm, source)
            self._head_in = _projection(spec.head_in, source)
            self._logits_scale = Multiplier(source, spec.logits_scale)
            self._logits_soft_cap = spec.logits_soft_cap
            self.head = _head(spec, source, None if spec.head else self.embedding.weight)
        for prefix in (*spec.ignored, *_names_outside(spec, stage.start, end)):
            source.ignore_unused(prefix)

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value:
        """[T, H]: the input of the first stage's `forward`."""
        assert self._first
        hidden = self._embedding_scale(ops, self.embedding(ops, ctx.token_ids))
        hidden = self._embedding_out(ops, hidden)
        if self._positions is not None:
            hidden = ops.add(hidden, self._positions(ops, ctx))
        return self._embedding_in(ops, self._embedding_norm(ops, hidden))

    def forward(
        self, ops: Ops, hidden: Value, ctx: ForwardContext, tap: Tap | None = None
    ) -> Value:
        """[T, H]: the residual stream after this stage's layers, not normalised.

        Args:
            tap: called with the number of each layer and its input.
        """
        for i, layer in enumerate(self.layers, self._start):
            if tap is not None:
                tap(i, hidden)
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
        # The head's input is the smaller of the two to be scaled.
        scaled = self._logits_scale(ops, self.norm(ops, selected))
        logits = self.head(ops, self._head_in(ops, scaled))
        cap = self._logits_soft_cap
        return ops.soft_cap(logits, cap) if cap else logits


def _names_outside(spec: DecoderSpec, start: int, end: int) -> list[str]:
    """Prefixes of the tensors that belong to stages other than layers [start, end)."""
    if start == 0 and end == len(spec.layers):
        return []
    shapes = ShapeSource()
    context = BuildContext(shapes, 1)
    for layer in (*spec.layers[:start], *spec.layers[end:]):
        layer.build(context)
    if start > 0:
        Embedding.load(shapes, spec.embedding, spec.further_tokens)
        _projection(spec.embedding_out, shapes)
        if spec.positions is not None:
            spec.positions.build(context)
        _norm(spec.embedding_norm, shapes)
        _projection(spec.embedding_in, shapes, bias=True)
    if end < len(spec.layers):
        _norm(spec.norm, shapes)
        _projection(spec.head_in, shapes)
        if spec.head is not None:
            _head(spec, shapes, None)
    # A quantised matrix has further tensors under its name.
    return [name.removesuffix("weight") for name in shapes.tensors]
