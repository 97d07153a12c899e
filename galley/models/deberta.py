"""DeBERTa v2 and v3: encoders whose attention scores have terms of content and distance."""

from __future__ import annotations

import msgspec

from galley.config import ModelInfo
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.disentangled import DisentangledSpec, DistancesSpec
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.positions import LearnedPositionsSpec
from galley.layers.token_conv import TokenConvSpec
from galley.layers.weight_specs import Part
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, MixerSpec, PostNormLayerSpec
from galley.models.gpt import Sizes, mlp, read_activation, read_sizes

_TERMS = {"c2p", "p2c"}


def deberta_v2(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info).with_defaults(layer_norm_eps=1e-7)
    sizes = read_sizes(config, eps_key="layer_norm_eps", activation="gelu", tied=True)
    hidden = sizes.hidden
    config.require("relative_attention", True, default=False)
    config.require("type_vocab_size", 0, default=0)
    config.require("embedding_size", hidden, default=hidden)
    terms = _terms(config)
    distances = _distances(config, sizes)
    shared = config.flag("share_att_key", False)

    def layer(index: int) -> PostNormLayerSpec:
        prefix = f"encoder.layer.{index}"

        def square(name: str) -> Part:
            return Part(f"{prefix}.attention.{name}", (hidden, hidden))

        def of_distances(term: str, own: str, other: str) -> Part | None:
            return square(f"self.{own if shared else other}") if term in terms else None

        return PostNormLayerSpec(
            mixer=DisentangledSpec(
                q=square("self.query_proj"),
                k=square("self.key_proj"),
                v=square("self.value_proj"),
                out=square("output.dense"),
                heads=sizes.heads,
                distances=distances,
                distance_q=of_distances("p2c", "query_proj", "pos_query_proj"),
                distance_k=of_distances("c2p", "key_proj", "pos_key_proj"),
            ),
            mlp=mlp(sizes, f"{prefix}.intermediate.dense", f"{prefix}.output.dense"),
            norm=sizes.norm(f"{prefix}.attention.output.LayerNorm"),
            mlp_norm=sizes.norm(f"{prefix}.output.LayerNorm"),
        )

    layers: list[PostNormLayerSpec | ConvolvedLayerSpec] = [layer(i) for i in range(sizes.layers)]
    taps = config.integer("conv_kernel_size", 0, least=0)
    if taps:
        layers[0] = _convolved(layer(0), config, sizes, taps)
    positions = None
    if config.flag("position_biased_input", True):
        rows = config.integer("max_position_embeddings", 512, least=1)
        positions = LearnedPositionsSpec(Part("embeddings.position_embeddings", (rows, hidden)), 0)
    return DecoderSpec(
        embedding=Part("embeddings.word_embeddings", (sizes.vocab, hidden)),
        layers=layers,
        norm=None,
        head=None,
        ignored=(
            *("cls.", "lm_predictions.", "mask_predictions.", "pooler."),
            *("embeddings.position_", "encoder.rel_embeddings.", "encoder.LayerNorm."),
        ),
        positions=positions,
        embedding_norm=LayerNormSpec("embeddings.LayerNorm", hidden, sizes.eps),
    )


class ConvolvedLayerSpec(msgspec.Struct, frozen=True):
    """A layer beside a convolution of its input: norm(layer(h) + conv(h))."""

    layer: PostNormLayerSpec
    conv: TokenConvSpec
    norm: LayerNormSpec

    @property
    def mixer(self) -> MixerSpec:
        return self.layer.mixer

    def build(self, context: BuildContext) -> ConvolvedLayer:
        return ConvolvedLayer(self, context)


class ConvolvedLayer:
    """A `ConvolvedLayerSpec` with its weights."""

    def __init__(self, spec: ConvolvedLayerSpec, context: BuildContext) -> None:
        self.layer = spec.layer.build(context)
        self.conv = spec.conv.build(context)
        self.norm = spec.norm.build(context.source)

    def __call__(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        convolved = self.conv(ops, hidden, ctx)
        return self.norm(ops, ops.add(self.layer(ops, hidden, ctx), convolved))


def _convolved(
    layer: PostNormLayerSpec, config: ModelFields, sizes: Sizes, taps: int
) -> ConvolvedLayerSpec:
    """The first layer of a model whose `conv_kernel_size` is `taps`."""
    config.require("conv_groups", 1, default=1)
    if taps % 2 == 0:
        raise config.wrong("conv_kernel_size", "odd")
    kernel = Part("encoder.conv.conv", (sizes.hidden, sizes.hidden * taps), taps=taps)
    function = read_activation(config, "conv_act", "tanh")
    return ConvolvedLayerSpec(
        layer, TokenConvSpec(kernel, function), sizes.norm("encoder.conv.LayerNorm")
    )


def _terms(config: ModelFields) -> set[str]:
    """The terms of `pos_att_type`: a list, or names between "|"."""
    given = config.values.get("pos_att_type")
    names = given.split("|") if isinstance(given, str) else given or []
    terms = {name.strip() for name in names if isinstance(name, str)}
    if not isinstance(names, list) or terms - _TERMS:
        raise config.wrong("pos_att_type", "some of c2p and p2c")
    return terms


def _distances(config: ModelFields, sizes: Sizes) -> DistancesSpec:
    longest = config.integer("max_position_embeddings", 512, least=4)
    most = config.integer("max_relative_positions", -1, least=-1)
    most = longest if most < 1 else most
    buckets = max(config.integer("position_buckets", -1, least=-1), 0)
    norm = config.text("norm_rel_ebd", "none")
    if norm not in ("none", "layer_norm"):
        raise config.wrong("norm_rel_ebd", "none or layer_norm")
    return DistancesSpec(
        Part("encoder.rel_embeddings", (2 * (buckets or most), sizes.hidden)),
        "encoder.LayerNorm" if norm == "layer_norm" else "",
        sizes.eps,
        buckets,
        most,
        longest,
    )
