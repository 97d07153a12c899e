"""Gemma 4 text: heads of two sizes, the last layers read the caches of earlier ones, and
each layer gets an embedding of its own.

    own = (norm(project(h0)) + embed(tokens)) / sqrt(2)                  of all layers, once
    for each layer:   h = sandwich_layer(h);   h += norm(out(gelu(gate(h)) * own));   h *= scalar
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.attention import AttentionSpec
from galley.layers.context import BuildContext
from galley.layers.embedding import Embedding
from galley.layers.linear import Linear
from galley.layers.norm import HeadNormSpec, NormSpec, RMSNormSpec
from galley.layers.rotary import Rotary
from galley.layers.scale import Multiplier
from galley.layers.shared_attention import SharedAttentionSpec
from galley.layers.weight_specs import Matrix, Part, Vector
from galley.layers.weights import WeightSource
from galley.models.config import (
    LayerKind,
    ModelFields,
    attention_kinds,
    every_nth_full,
    model_fields,
    read_rotary,
    rope_of_kind,
    window_of,
)
from galley.models.decoder import (
    Decoder,
    DecoderLayer,
    DecoderSpec,
    FeedForwardSpec,
    LayerSpec,
    MixerSpec,
    Stage,
    Tap,
)
from galley.models.gemma4_experts import with_experts
from galley.models.llama import Sizes, attention, decoder, mlp, read_sizes


class LayerInputSpec(msgspec.Struct, frozen=True):
    """Weights of a layer's own embedding: gate [D, hidden], out [hidden, D]."""

    gate: Part
    out: Part
    norm: NormSpec


class Gemma4LayerSpec(LayerSpec, frozen=True):
    """A layer with an input of its own and a factor.

    Attributes:
        own: None = the model has no embeddings per layer.
        scalar: the tensor [1] that the layer's result is multiplied with.
    """

    own: LayerInputSpec | None = None
    scalar: Part | None = None

    def build(self, context: BuildContext) -> Gemma4Layer:
        return Gemma4Layer(self, context)


class Gemma4Layer(DecoderLayer):
    """A `Gemma4LayerSpec` with its weights."""

    def __init__(self, spec: Gemma4LayerSpec, context: BuildContext) -> None:
        super().__init__(spec, context)
        source = context.source
        self._own = spec.own is not None
        if spec.own is not None:
            self.gate = Linear(source, Matrix((spec.own.gate,)))
            self.out = Linear(source, Matrix((spec.own.out,)))
            self.own_norm = spec.own.norm.build(source)
        assert spec.scalar is not None
        self.scalar = source.vector(Vector((spec.scalar,)))

    def finish(self, ops: Ops, hidden: Value, own: Value | None) -> Value:
        """The layer's result, from that of its two blocks."""
        if own is not None:
            gated = ops.gate(own, self.gate(ops, hidden), "gelu_tanh")
            hidden = ops.add(hidden, self.own_norm(ops, self.out(ops, gated)))
        return ops.scale(hidden, self.scalar)


class LayerEmbeddingsSpec(msgspec.Struct, frozen=True):
    """Embeddings of all layers, `size` numbers each: `embedding` [vocab, layers * size], and the
    projection [layers * size, hidden] of the model's own embedding, with its norm."""

    embedding: Part
    projection: Part
    norm: HeadNormSpec
    size: int

    def build(self, source: WeightSource) -> LayerEmbeddings:
        return LayerEmbeddings(self, source)


class LayerEmbeddings:
    """hidden [T, H] and the step's tokens → [T, layers * size]."""

    def __init__(self, spec: LayerEmbeddingsSpec, source: WeightSource) -> None:
        self.embedding = Embedding.load(source, spec.embedding)
        self.projection = Linear(source, Matrix((spec.projection,)))
        self.norm = spec.norm.build(source)
        self._scale = Multiplier(source, spec.size**0.5)
        self._project_scale = Multiplier(source, spec.projection.shape[1] ** -0.5)
        self._sum_scale = Multiplier(source, 2**-0.5)

    def __call__(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        projected = self._project_scale(ops, self.projection(ops, hidden))
        embedded = self._scale(ops, self.embedding(ops, ctx.token_ids))
        return self._sum_scale(ops, ops.add(self.norm(ops, projected), embedded))


class Gemma4Spec(DecoderSpec, frozen=True):
    """A decoder of `Gemma4LayerSpec`; `own`: None = no embeddings per layer."""

    own: LayerEmbeddingsSpec | None = None

    def build(self, source: WeightSource, stage: Stage) -> Gemma4:
        return Gemma4(self, source, stage)


class Gemma4(Decoder):
    """A `Gemma4Spec` with its weights, whole: its layers share what no stage passes on."""

    def __init__(self, spec: Gemma4Spec, source: WeightSource, stage: Stage) -> None:
        if stage.start or stage.end not in (None, len(spec.layers)):
            raise ModelError("Gemma 4 cannot be divided into stages")
        super().__init__(spec, source, stage)
        self.own = None if spec.own is None else spec.own.build(source)
        self._size = 0 if spec.own is None else spec.own.size

    def forward(
        self, ops: Ops, hidden: Value, ctx: ForwardContext, tap: Tap | None = None
    ) -> Value:
        """Has no taps."""
        assert tap is None
        own: list[Value | None] = [None] * len(self.layers)
        if self.own is not None:
            own = [*ops.split(self.own(ops, hidden, ctx), [self._size] * len(self.layers))]
        for layer, given in zip(self.layers, own, strict=True):
            assert isinstance(layer, Gemma4Layer)
            hidden = layer.finish(ops, layer(ops, hidden, ctx), given)
        return hidden


def gemma4(model_info: ModelInfo) -> Gemma4Spec:
    config = model_fields(model_info).with_defaults(tie_word_embeddings=True)
    config.require("use_bidirectional_attention", None, "vision")
    sizes = read_sizes(
        rope_of_kind(config, "sliding_attention"),
        act_key="hidden_activation",
        activations=("gelu_tanh",),
    )
    kinds = attention_kinds(config, sizes.layers, every_nth_full(6))
    shared_from = sizes.layers - config.integer("num_kv_shared_layers", 0, most=sizes.layers - 1)
    per_kind = {kind: _kind(config, sizes, kind) for kind in set(kinds)}
    window, size = window_of(config, kinds), config.integer("hidden_size_per_layer_input", 256)
    wide = 2 if config.flag("use_double_wide_mlp", False) else 1
    layers = []
    for i, kind in enumerate(kinds):
        prefix = f"model.layers.{i}"
        own = per_kind[kind].mixer(prefix, window if kind == "sliding_attention" else 0)
        mixer: MixerSpec = own
        feed_forward: FeedForwardSpec = mlp(sizes, f"{prefix}.mlp")
        if i >= shared_from:
            giver = last_of(kinds[:shared_from], kind, config)
            mixer = reading(own, f"model.layers.{giver}.self_attn.k_proj")
            larger = replace(sizes, intermediate=wide * sizes.intermediate)
            feed_forward = mlp(larger, f"{prefix}.mlp")
        layers.append(_layer(sizes, prefix, mixer, feed_forward, size))
    if config.flag("enable_moe_block", False):
        layers = [with_experts(config, sizes, one, i) for i, one in enumerate(layers)]
    plain = decoder(sizes, layers)
    # Checkpoints have projections of layers that read another's cache, unused.
    unused = tuple(
        f"model.layers.{i}.self_attn.{name}."
        for i in range(shared_from, sizes.layers)
        for name in ("k_proj", "v_proj", "k_norm", "v_norm")
    )
    return Gemma4Spec(
        **{key: getattr(plain, key) for key in ("embedding", "layers", "norm", "head")},
        ignored=plain.ignored + unused,
        embedding_scale=sizes.hidden**0.5,
        logits_soft_cap=config.number("final_logit_softcapping", 0.0),
        own=layer_embeddings(config, sizes, size) if size else None,
    )


class _Kind(msgspec.Struct, frozen=True):
    """Attention of one kind of layers."""

    sizes: Sizes
    bias: bool
    values_are_keys: bool

    def mixer(self, prefix: str, window: int) -> AttentionSpec:
        s, name = self.sizes, f"{prefix}.self_attn"
        spec = attention(
            s, name, window=window, qkv_bias=self.bias, out_bias=self.bias, qk_norm=True
        )
        return replace(
            spec,
            v=spec.k if self.values_are_keys else spec.v,
            scale=1.0,
            v_norm=HeadNormSpec(None, s.head_dim, s.eps),
        )


def _kind(config: ModelFields, sizes: Sizes, kind: LayerKind) -> _Kind:
    """Layers that see all tokens have heads of another size, and may have other KV heads."""
    bias = config.flag("attention_bias", False)
    if kind == "sliding_attention":
        return _Kind(sizes, bias, values_are_keys=False)
    own = _full_layer(config)
    head_dim = own.integer("head_dim", config.integer("global_head_dim", 512), least=2)
    equal = config.flag("attention_k_eq_v", False)
    kv_heads = sizes.kv_heads
    if equal:
        kv_heads = config.integer("num_global_key_value_heads", kv_heads, least=1)
    kv_heads = own.integer("num_key_value_heads", kv_heads, least=1)
    rotary: Rotary = read_rotary(
        rope_of_kind(config, kind).with_defaults(
            rope_parameters={
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1e6,
            }
        ),
        head_dim,
        1e6,
    )
    full = replace(sizes, head_dim=head_dim, kv_heads=kv_heads, rotary=rotary)
    return _Kind(full, bias, values_are_keys=equal)


def _full_layer(config: ModelFields) -> ModelFields:
    """The values of a layer that sees all tokens, where the config lists them by layer."""
    layers = config.within("per_layer_config")
    return next((layers.within(key) for key in layers.values), layers)


def last_of(kinds: list[LayerKind], kind: LayerKind, config: ModelFields) -> int:
    if kind not in kinds:
        raise config.wrong("num_kv_shared_layers", f"such that a layer of {kind} has a cache")
    return len(kinds) - 1 - kinds[::-1].index(kind)


def reading(mixer: AttentionSpec, keys: str) -> SharedAttentionSpec:
    assert mixer.rotary is not None
    return SharedAttentionSpec(
        q=mixer.q,
        out=mixer.out,
        heads=mixer.heads,
        scale=mixer.scale,
        rotary=mixer.rotary,
        keys=keys,
        bias=mixer.out_bias,
        q_norm=mixer.q_norm,
    )


def _layer(
    sizes: Sizes, prefix: str, mixer: MixerSpec, feed_forward: FeedForwardSpec, size: int
) -> Gemma4LayerSpec:
    def norm(name: str) -> RMSNormSpec:
        return RMSNormSpec(f"{prefix}.{name}", sizes.hidden, sizes.eps)

    own = LayerInputSpec(
        gate=Part(f"{prefix}.per_layer_input_gate", (size, sizes.hidden)),
        out=Part(f"{prefix}.per_layer_projection", (sizes.hidden, size)),
        norm=norm("post_per_layer_input_norm"),
    )
    return Gemma4LayerSpec(
        mixer=mixer,
        mlp=feed_forward,
        mixer_norm=norm("input_layernorm"),
        mixer_out_norm=norm("post_attention_layernorm"),
        mlp_norm=norm("pre_feedforward_layernorm"),
        mlp_out_norm=norm("post_feedforward_layernorm"),
        own=own if size else None,
        scalar=Part(f"{prefix}.layer_scalar", (1,)),
    )


def layer_embeddings(config: ModelFields, sizes: Sizes, size: int) -> LayerEmbeddingsSpec:
    vocab, width = (
        config.integer("vocab_size_per_layer_input", sizes.vocab, least=1),
        sizes.layers * size,
    )
    return LayerEmbeddingsSpec(
        embedding=Part("model.embed_tokens_per_layer", (vocab, width)),
        projection=Part("model.per_layer_model_projection", (width, sizes.hidden)),
        norm=HeadNormSpec("model.per_layer_projection_norm", size, sizes.eps),
        size=size,
    )
