"""LFM2 and LFM2-MoE: gated short convolutions, and attention in some layers."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.kernels.ops.route import Score
from galley.layers.mlp import MLPSpec
from galley.layers.norm import HeadNormSpec, RMSNormSpec
from galley.layers.short_conv import ShortConvSpec
from galley.layers.weight_specs import Part
from galley.models.config import ModelFields, layer_kinds, model_fields
from galley.models.decoder import DecoderSpec, FeedForwardSpec, LayerSpec, MixerSpec
from galley.models.llama import Sizes, attention, decoder, read_sizes
from galley.models.mixture import experts, mixture, read_routing


def lfm2(model_info: ModelInfo) -> DecoderSpec:
    """Layers of a convolution or of attention, and a gated MLP."""
    config = model_fields(model_info)
    return _model(config, _intermediate(config))


def lfm2_moe(model_info: ModelInfo) -> DecoderSpec:
    """The same with experts in all but the first layers."""
    config = model_fields(model_info)
    values = {"num_experts": 32, **config.values}
    return _model(ModelFields(values, config.where), config.integer("intermediate_size", least=1))


def _model(config: ModelFields, intermediate: int) -> DecoderSpec:
    eps = config.number("norm_eps", 1e-5)
    sizes = replace(read_sizes(config, theta=1e6), eps=eps, intermediate=intermediate)
    if not config.has("tie_word_embeddings"):
        sizes = replace(sizes, tied=config.flag("tie_embedding", True))
    kinds = _kinds(config, sizes.layers)
    return replace(
        decoder(sizes, [_layer(config, sizes, i, kind) for i, kind in enumerate(kinds)]),
        norm=RMSNormSpec("model.embedding_norm", sizes.hidden, eps),
    )


def _kinds(config: ModelFields, layers: int) -> list[str]:
    if config.has("layer_types"):
        return layer_kinds(config, layers, ("conv", "full_attention"))
    attends = config.values.get("full_attn_idxs")
    if attends is None:
        return ["full_attention"] * layers
    if not isinstance(attends, list):
        raise config.wrong("full_attn_idxs", "a list of layers")
    return ["full_attention" if i in attends else "conv" for i in range(layers)]


def _intermediate(config: ModelFields) -> int:
    size = config.integer("block_ff_dim", config.integer("intermediate_size", 1), least=1)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(config.number("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3))
    multiple = config.integer("block_multiple_of", 256, least=1)
    return -(-size // multiple) * multiple


def _layer(config: ModelFields, sizes: Sizes, index: int, kind: str) -> LayerSpec:
    prefix, h = f"model.layers.{index}", sizes.hidden
    mixer: MixerSpec
    if kind == "conv":
        taps = config.integer("conv_L_cache", 3, least=2, most=64)
        mixer = ShortConvSpec(f"{prefix}.conv", h, taps, config.flag("conv_bias", False))
    else:
        own = f"{prefix}.self_attn"
        mixer = replace(
            attention(sizes, own),
            out=Part(f"{own}.out_proj", (h, sizes.heads * sizes.head_dim)),
            q_norm=HeadNormSpec(f"{own}.q_layernorm", sizes.head_dim, sizes.eps),
            k_norm=HeadNormSpec(f"{own}.k_layernorm", sizes.head_dim, sizes.eps),
        )
    return LayerSpec(
        mixer=mixer,
        mlp=_feed_forward(config, sizes, f"{prefix}.feed_forward", index),
        mixer_norm=RMSNormSpec(f"{prefix}.operator_norm", h, sizes.eps),
        mlp_norm=RMSNormSpec(f"{prefix}.ffn_norm", h, sizes.eps),
    )


def _feed_forward(config: ModelFields, sizes: Sizes, name: str, index: int) -> FeedForwardSpec:
    h = sizes.hidden
    if not config.has("num_experts") or index < config.integer("num_dense_layers", 2):
        return MLPSpec(
            gate=Part(f"{name}.w1", (sizes.intermediate, h)),
            up=Part(f"{name}.w3", (sizes.intermediate, h)),
            down=Part(f"{name}.w2", (h, sizes.intermediate)),
        )
    routing = read_routing(
        config,
        score=Score.sigmoid,
        renormalise=config.flag("norm_topk_prob", True),
        scale=config.number("routed_scaling_factor", 1.0),
    )
    size = config.integer("moe_intermediate_size", least=1)
    parts = experts(f"{name}.experts", routing.experts, h, size, ("w1", "w3", "w2"))
    bias = Part(f"{name}.expert_bias", (routing.experts,))
    chosen = bias if config.flag("use_expert_bias", True) else None
    return mixture(name, h, routing, parts, choice_bias=chosen)
