"""Gemma 3n text: several residual streams of which a layer computes one (AltUp), a low-rank block
beside attention (Laurel), few active neurons in the first layers, and Gemma 4's shared caches and
embeddings per layer.

    streams = [h, match(project(h)) …]
    for each layer:   predicted = mix(streams, predict(router(streams[0])))
                      activated = sandwich_layer(predicted[0])
                      streams = predicted + correct(router(activated)) * (activated - predicted[0])
                      streams[1:] += norm(out(gelu(gate(streams[0] * scale)) * own))
    h = mean(streams[0], match(unembed(streams[i])) …)
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.norm import HeadNormSpec, RMSNormSpec
from galley.layers.scale import Multiplier
from galley.layers.weight_specs import Matrix, Part, Vector
from galley.layers.weights import WeightSource
from galley.models.config import (
    ModelFields,
    attention_kinds,
    every_nth_full,
    model_fields,
    rope_of_kind,
    window_of,
)
from galley.models.decoder import Decoder, DecoderSpec, FeedForwardSpec, MixerSpec, Stage, Tap
from galley.models.gemma3 import sliding_rotary
from galley.models.gemma4 import (
    LayerEmbeddingsSpec,
    last_of,
    layer_embeddings,
    reading,
)
from galley.models.llama import Sizes, attention, decoder, mlp, read_sizes

#: Most residual streams that a config may ask for, against nonsense.
MAX_STREAMS = 16


class SparseMLPSpec(msgspec.Struct, frozen=True):
    """A gated MLP of whose gate only what is so many deviations above its mean acts."""

    name: str
    hidden: int
    intermediate: int
    deviations: float

    def build(self, context: BuildContext) -> SparseMLP:
        return SparseMLP(self, context)


class SparseMLP:
    """x [T, hidden] → [T, hidden]."""

    def __init__(self, spec: SparseMLPSpec, context: BuildContext) -> None:
        context.require_one_rank("an MLP with sparse activations")
        source, name, h, n = context.source, spec.name, spec.hidden, spec.intermediate
        parts = (Part(f"{name}.gate_proj", (n, h)), Part(f"{name}.up_proj", (n, h)))
        self.gate_up = Linear(source, Matrix(parts))
        self.down = Linear(source, Matrix((Part(f"{name}.down_proj", (h, n)),)))
        self._size, self._deviations = n, spec.deviations

    def __call__(self, ops: Ops, x: Value) -> Value:
        gate, up = ops.split(self.gate_up(ops, x), (self._size, self._size))
        sparse = ops.sparsify(gate, self._deviations)
        return self.down(ops, ops.gate(up, sparse, "gelu_tanh"))


class Gemma3nLayerSpec(msgspec.Struct, frozen=True):
    """A layer: its attention and MLP, and what it has beside them under `prefix`.

    Attributes:
        streams: how many there are.
        laurel: rank of the low-rank block.
        own: size of the layer's own embedding.
        scaled: the layer's own input is multiplied with a vector first.
    """

    prefix: str
    mixer: MixerSpec
    mlp: FeedForwardSpec
    hidden: int
    eps: float
    streams: int
    laurel: int
    own: int
    scaled: bool

    def build(self, context: BuildContext) -> Gemma3nLayer:
        return Gemma3nLayer(self, context)


class Gemma3nLayer:
    """Streams [T, streams * hidden] → streams; `finish` adds the layer's embedding [T, own]."""

    def __init__(self, spec: Gemma3nLayerSpec, context: BuildContext) -> None:
        source, prefix, h, s = context.source, spec.prefix, spec.hidden, spec.streams

        def norm(name: str) -> Any:
            return RMSNormSpec(f"{prefix}.{name}", h, spec.eps).build(source)

        def linear(name: str, outputs: int, inputs: int) -> Linear:
            return Linear(source, Matrix((Part(f"{prefix}.{name}", (outputs, inputs)),)))

        self.mixer, self.mlp = spec.mixer.build(context), spec.mlp.build(context)
        self.mixer_norm, self.mixer_out_norm, self.mlp_norm, self.mlp_out_norm = (
            norm(name)
            for name in (
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            )
        )
        self.left = linear("laurel.linear_left", spec.laurel, h)
        self.right = linear("laurel.linear_right", h, spec.laurel)
        self.laurel_norm = norm("laurel.post_laurel_norm")
        self.router = linear("altup.modality_router", s, h)
        self.router_norm = norm("altup.router_norm")
        self.predict = linear("altup.prediction_coefs", s * s, s)
        self.correct = linear("altup.correction_coefs", s, s)
        self.gate = linear("per_layer_input_gate", spec.own, h)
        self.out = linear("per_layer_projection", h, spec.own)
        self.own_norm = norm("post_per_layer_input_norm")
        self.scale = None
        if spec.scaled:
            part = Part(f"{prefix}.altup.correct_output_scale", (h,))
            self.scale = source.vector(Vector((part,)))
        self._router_scale = Multiplier(source, 1 / h)
        self._half = Multiplier(source, 2**-0.5)
        self._minus = Multiplier(source, -1.0)
        self._ones = source.constant((s,), lambda: np.ones(s, np.float32))
        self._others = source.constant((s,), lambda: np.array([0.0] + [1.0] * (s - 1), np.float32))
        self._sizes, self._streams = (h,) * s, s
        self._first = one_stream(source, s)

    def __call__(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        s = self._streams
        first = ops.mix(hidden, self._first, s, 1)
        coefs = self.predict(ops, self._routed(ops, first))
        predicted = ops.add(ops.mix(hidden, coefs, s, s), hidden)
        active = ops.mix(predicted, self._first, s, 1)
        activated = self._activated(ops, active, ctx)
        change = ops.add(self._minus(ops, active), activated)
        coefs = ops.shift(self.correct(ops, self._routed(ops, activated)), self._ones)
        return ops.add(ops.mix(change, coefs, 1, s), predicted)

    def finish(self, ops: Ops, streams: Value, own: Value) -> Value:
        """All streams but the first with the layer's own input, which depends on the first."""
        s = self._streams
        first = ops.mix(streams, self._first, s, 1)
        if self.scale is not None:
            first = ops.scale(first, self.scale)
        gated = ops.gate(own, self.gate(ops, first), "gelu_tanh")
        added = self.own_norm(ops, self.out(ops, gated))
        return ops.add(streams, ops.mix(added, self._others, 1, s))

    def _routed(self, ops: Ops, x: Value) -> Value:
        routed = self.router(ops, self._router_scale(ops, self.router_norm(ops, x)))
        return ops.elementwise(routed, "tanh")

    def _activated(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        """Attention and MLP on one stream."""
        normed = self.mixer_norm(ops, x)
        laurel = self.laurel_norm(ops, self.right(ops, self.left(ops, normed)))
        laurel = ops.add(laurel, normed)
        attended = self.mixer_out_norm(ops, self.mixer(ops, normed, ctx))
        x = self._half(ops, ops.add(ops.add(attended, x), laurel))
        return ops.add(self.mlp_out_norm(ops, self.mlp(ops, self.mlp_norm(ops, x))), x)


class Gemma3nSpec(DecoderSpec, frozen=True):
    """A decoder of `Gemma3nLayerSpec` with its embeddings per layer, and `streams` of them."""

    own: LayerEmbeddingsSpec | None = None
    streams: int = 4

    def build(self, source: WeightSource, stage: Stage) -> Gemma3n:
        return Gemma3n(self, source, stage)


class Gemma3n(Decoder):
    """A `Gemma3nSpec` with its weights, whole: its layers share what no stage passes on."""

    def __init__(self, spec: Gemma3nSpec, source: WeightSource, stage: Stage) -> None:
        if stage.start or stage.end not in (None, len(spec.layers)):
            raise ModelError("Gemma 3n cannot be divided into stages")
        super().__init__(spec, source, stage)
        assert spec.own is not None
        h, s = spec.embedding.shape[1], spec.streams
        self.own, self._size, self._streams = spec.own.build(source), spec.own.size, s
        parts = [Part(f"model.altup_projections.{i}", (h, h)) for i in range(s - 1)]
        self.project = Linear(source, Matrix(tuple(parts)))
        self.unembed = [
            Linear(source, Matrix((Part(f"model.altup_unembed_projections.{i}", (h, h)),)))
            for i in range(s - 1)
        ]
        self._mean = Multiplier(source, 1 / s)
        self._stream = [one_stream(source, s, i) for i in range(s)]
        self._others = source.constant(
            (s * (s - 1),), lambda: np.eye(s, s - 1, -1, np.float32).ravel()
        )

    def forward(
        self, ops: Ops, hidden: Value, ctx: ForwardContext, tap: Tap | None = None
    ) -> Value:
        """Has no taps."""
        assert tap is None
        s, size = self._streams, self._size
        own = ops.split(self.own(ops, hidden, ctx), [size] * len(self.layers))
        others = ops.match_size(self.project(ops, hidden), hidden)
        streams = ops.add(
            ops.mix(others, self._others, s - 1, s), ops.mix(hidden, self._stream[0], 1, s)
        )
        for layer, given in zip(self.layers, own, strict=True):
            assert isinstance(layer, Gemma3nLayer)
            streams = layer.finish(ops, layer(ops, streams, ctx), given)
        first = ops.mix(streams, self._stream[0], s, 1)
        total = None
        for i, unembed in enumerate(self.unembed):
            other = ops.mix(streams, self._stream[i + 1], s, 1)
            other = ops.match_size(unembed(ops, other), first)
            total = other if total is None else ops.add(total, other)
        return self._mean(ops, first if total is None else ops.add(total, first))


def one_stream(source: WeightSource, streams: int, index: int = 0) -> Any:
    """The factors of `mix` that take one stream, or put a value in its place."""
    return source.constant((streams,), lambda: np.eye(streams, dtype=np.float32)[index])


def gemma3n(model_info: ModelInfo) -> Gemma3nSpec:
    config = model_fields(model_info).with_defaults(tie_word_embeddings=True)
    config.require("altup_active_idx", 0, default=0)
    widths = config.values.get("intermediate_size")
    flat = config
    if isinstance(widths, list) and widths:
        flat = config.replaced(intermediate_size=widths[0])
    sizes = read_sizes(
        rope_of_kind(flat, "full_attention").with_defaults(rope_theta=1e6),
        act_key="hidden_activation",
        activations=("gelu_tanh",),
    )
    count = sizes.layers
    kinds = attention_kinds(config, count, every_nth_full(5))
    shared_from = count - config.integer("num_kv_shared_layers", 15, most=count - 1)
    streams = config.integer("altup_num_inputs", 4, least=2, most=MAX_STREAMS)
    own = config.integer("hidden_size_per_layer_input", 256, least=1)
    of_layers = zip(
        _list(config, "intermediate_size", widths, count),
        _sparsity(config, count),
        strict=True,
    )
    layers = [
        Gemma3nLayerSpec(
            prefix=f"model.layers.{i}",
            mixer=_mixer(config, sizes, kinds, i, shared_from),
            mlp=_mlp(replace(sizes, intermediate=width), f"model.layers.{i}.mlp", sparsity),
            hidden=sizes.hidden,
            eps=sizes.eps,
            streams=streams,
            laurel=config.integer("laurel_rank", 64, least=1),
            own=own,
            scaled=config.flag("altup_correct_scale", True),
        )
        for i, (width, sparsity) in enumerate(of_layers)
    ]
    plain = decoder(sizes, layers)
    # Checkpoints have projections of layers that read another's cache, unused.
    unused = tuple(
        f"model.layers.{i}.{name}"
        for i in range(shared_from, count)
        for name in ("self_attn.k_", "self_attn.v_")
    )
    if not config.flag("altup_correct_scale", True):
        unused += tuple(f"model.layers.{i}.altup.correct_output_scale" for i in range(count))
    return Gemma3nSpec(
        **{key: getattr(plain, key) for key in ("embedding", "layers", "norm", "head")},
        ignored=plain.ignored + unused,
        embedding_scale=sizes.hidden**0.5,
        logits_soft_cap=config.number("final_logit_softcapping", 0.0),
        own=layer_embeddings(config, sizes, own),
        streams=streams,
    )


def _list(config: ModelFields, key: str, value: object, count: int) -> list[int]:
    """One integer for each layer, which may be written once."""
    values = value if isinstance(value, list) else [config.integer(key, least=1)] * count
    if len(values) != count or not all(isinstance(n, int) and n > 0 for n in values):
        raise config.wrong(key, f"{count} integers above 0")
    return values


def _sparsity(config: ModelFields, count: int) -> list[float]:
    """The part of each layer's neurons that does not act."""
    values: Any = config.values.get("activation_sparsity_pattern")
    if values is None:
        sparse = 10 if count > 10 else 0
        return [0.95] * sparse + [0.0] * (count - sparse)
    if not isinstance(values, list):
        values = [values] * count
    if len(values) != count or not all(isinstance(x, int | float) and 0 <= x < 1 for x in values):
        raise config.wrong("activation_sparsity_pattern", f"{count} numbers from 0 to below 1")
    return [float(x) for x in values]


def _mlp(sizes: Sizes, name: str, sparsity: float) -> FeedForwardSpec:
    if not sparsity:
        return mlp(sizes, name)
    return SparseMLPSpec(name, sizes.hidden, sizes.intermediate, NormalDist().inv_cdf(sparsity))


def _mixer(
    config: ModelFields, sizes: Sizes, kinds: list[Any], index: int, shared_from: int
) -> MixerSpec:
    kind, bias = kinds[index], config.flag("attention_bias", False)
    sliding = kind == "sliding_attention"
    spec = attention(
        sizes,
        f"model.layers.{index}.self_attn",
        window=window_of(config, kinds) if sliding else 0,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
    )
    spec = replace(
        spec,
        scale=1.0,
        rotary=sliding_rotary(config, sizes.head_dim) if sliding else sizes.rotary,
        v_norm=HeadNormSpec(None, sizes.head_dim, sizes.eps),
    )
    if index < shared_from:
        return spec
    giver = last_of(kinds[:shared_from], kind, config)
    return reading(spec, f"model.layers.{giver}.self_attn.k_proj")
