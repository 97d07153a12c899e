"""Hunyuan: q and k are normalised per head after the rotation."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import HeadNormSpec
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, attention, decoder, layer, mlp, read_sizes
from galley.models.mixture import experts, mixture, read_routing


def hunyuan(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, eps=1e-5)
    return decoder(sizes, [_layer(config, sizes, i) for i in range(sizes.layers)])


def hunyuan_moe(model_info: ModelInfo) -> DecoderSpec:
    """With experts in every layer, beside one for all tokens; all have the size of the MLP."""
    config = model_fields(model_info)
    sizes = read_sizes(config, eps=1e-5)
    routing = read_routing(config)

    def one(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}.mlp"
        parts = experts(f"{prefix}.experts", routing.experts, sizes.hidden, sizes.intermediate)
        moe = mixture(
            prefix,
            sizes.hidden,
            routing,
            parts,
            router="gate.wg",
            shared=mlp(sizes, f"{prefix}.shared_mlp"),
        )
        return replace(_layer(config, sizes, index), mlp=moe)

    return decoder(sizes, [one(i) for i in range(sizes.layers)])


def _layer(config: ModelFields, sizes: Sizes, index: int) -> LayerSpec:
    prefix, bias = f"model.layers.{index}.self_attn", config.flag("attention_bias", False)
    mixer = replace(
        attention(sizes, prefix, qkv_bias=bias, out_bias=bias),
        q_norm=HeadNormSpec(f"{prefix}.query_layernorm", sizes.head_dim, sizes.eps),
        k_norm=HeadNormSpec(f"{prefix}.key_layernorm", sizes.head_dim, sizes.eps),
        norm_after_rotary=True,
    )
    return replace(layer(sizes, index), mixer=mixer)
