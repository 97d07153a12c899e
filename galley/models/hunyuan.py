"""Hunyuan (dense): q and k are normalised per head after the rotation."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import HeadNormSpec
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import attention, decoder, layer, read_sizes


def hunyuan(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, eps=1e-5)
    bias = config.flag("attention_bias", False)

    def layer_of(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}.self_attn"
        mixer = replace(
            attention(sizes, prefix, qkv_bias=bias, out_bias=bias),
            q_norm=HeadNormSpec(f"{prefix}.query_layernorm", sizes.head_dim, sizes.eps),
            k_norm=HeadNormSpec(f"{prefix}.key_layernorm", sizes.head_dim, sizes.eps),
            norm_after_rotary=True,
        )
        return replace(layer(sizes, index), mixer=mixer)

    return decoder(sizes, [layer_of(i) for i in range(sizes.layers)])
