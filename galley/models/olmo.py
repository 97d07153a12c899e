"""OLMo 1 to 3 and FlexOlmo: norms without weights (1), or of each block's output and of q and k
(the others)."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.norm import RMSNormSpec
from galley.models.config import (
    attention_kinds,
    every_nth_full,
    model_fields,
    read_rotary,
    rope_of_kind,
    window_of,
)
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import (
    Sizes,
    attention,
    biased_layers,
    decoder,
    mlp,
    read_sizes,
    with_attention,
)
from galley.models.mixture import experts, mixture, read_routing


def olmo(model_info: ModelInfo) -> DecoderSpec:
    """Layer norms without weights."""
    config = model_fields(model_info)
    clip = config.above_zero("clip_qkv") if config.has("clip_qkv") else 0.0
    sizes = read_sizes(config)
    norm = LayerNormSpec(None, sizes.hidden, 1e-5)
    layers = [
        replace(with_attention(layer, clip=clip), mixer_norm=norm, mlp_norm=norm)
        for layer in biased_layers(config, sizes)
    ]
    return replace(decoder(sizes, layers), norm=norm)


def olmo2(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, eps=1e-5)
    bias = config.flag("attention_bias", False)
    return decoder(sizes, [_layer(sizes, i, bias=bias) for i in range(sizes.layers)])


def flex_olmo(model_info: ModelInfo) -> DecoderSpec:
    """OLMo 2 with experts in every layer."""
    config = model_fields(model_info)
    sizes = read_sizes(config, theta=500000.0)
    bias = config.flag("attention_bias", False)
    routing = read_routing(config, renormalise=config.flag("norm_topk_prob", False))

    def one(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}.mlp"
        parts = experts(f"{prefix}.experts", routing.experts, sizes.hidden, sizes.intermediate)
        moe = mixture(prefix, sizes.hidden, routing, parts)
        return replace(_layer(sizes, index, bias=bias), mlp=moe)

    return decoder(sizes, [one(i) for i in range(sizes.layers)])


def olmo3(model_info: ModelInfo) -> DecoderSpec:
    """OLMo 2 with windows on three layers of four; rope scaling acts on the others."""
    config = model_fields(model_info)
    of_kind = rope_of_kind(config, "full_attention")
    sizes = read_sizes(of_kind, theta=500000.0, eps=1e-5)
    kinds = attention_kinds(config, sizes.layers, every_nth_full(4))
    window, bias = window_of(config, kinds), config.flag("attention_bias", False)
    local = rope_of_kind(config, "sliding_attention")
    if local is config:
        theta = config.table("rope_parameters").get("rope_theta", config.values.get("rope_theta"))
        plain = {"rope_parameters": None, "rope_scaling": None, "rope_theta": theta}
        local = config.replaced(**plain)
    rotary = read_rotary(local, sizes.head_dim, 500000.0)
    layers = []
    for i, kind in enumerate(kinds):
        if kind == "sliding_attention":
            layers.append(_layer(replace(sizes, rotary=rotary), i, window=window, bias=bias))
        else:
            layers.append(_layer(sizes, i, bias=bias))
    return decoder(sizes, layers)


def _layer(sizes: Sizes, index: int, *, window: int = 0, bias: bool = False) -> LayerSpec:
    prefix = f"model.layers.{index}"
    mixer = attention(sizes, f"{prefix}.self_attn", window=window, qkv_bias=bias, out_bias=bias)
    q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    return LayerSpec(
        mixer=replace(
            mixer,
            q_norm=RMSNormSpec(f"{prefix}.self_attn.q_norm", q, sizes.eps),
            k_norm=RMSNormSpec(f"{prefix}.self_attn.k_norm", kv, sizes.eps),
        ),
        mlp=mlp(sizes, f"{prefix}.mlp"),
        mixer_norm=None,
        mlp_norm=None,
        mixer_out_norm=RMSNormSpec(f"{prefix}.post_attention_layernorm", sizes.hidden, sizes.eps),
        mlp_out_norm=RMSNormSpec(f"{prefix}.post_feedforward_layernorm", sizes.hidden, sizes.eps),
    )
