"""GLM-4: interleaved rotary embedding of half of each head, gate and up in one tensor; since 0414
norms around each block."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import fuse
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, decoder, layer, mlp, read_sizes, with_fused_qkv


def glm(model_info: ModelInfo) -> DecoderSpec:
    sizes, layers = _layers(model_info)
    return decoder(sizes, layers)


def glm4(model_info: ModelInfo) -> DecoderSpec:
    sizes, plain = _layers(model_info)
    layers = []
    for i, one in enumerate(plain):
        prefix = f"model.layers.{i}"
        out, mlp_out = (
            RMSNormSpec(f"{prefix}.{name}", sizes.hidden, sizes.eps)
            for name in ("post_self_attn_layernorm", "post_mlp_layernorm")
        )
        layers.append(replace(one, mixer_out_norm=out, mlp_out_norm=mlp_out))
    return decoder(sizes, layers)


def _layers(model_info: ModelInfo) -> tuple[Sizes, list[LayerSpec]]:
    config = model_fields(model_info)
    if not config.table("rope_parameters").get("partial_rotary_factor"):
        config = config.with_defaults(partial_rotary_factor=0.5)
    sizes = read_sizes(config, eps=1.5625e-07, partial_rotary=True, interleaved=True)
    bias = config.flag("attention_bias", True)
    layers = []
    for i in range(sizes.layers):
        gated = mlp(sizes, f"model.layers.{i}.mlp")
        gate, up = fuse(f"model.layers.{i}.mlp.gate_up_proj", (gated.gate, gated.up))
        fused = replace(gated, gate=gate, up=up)
        one = replace(layer(sizes, i, qkv_bias=bias), mlp=fused)
        if config.flag("fused_qkv", False):  # in GGUF files
            one = with_fused_qkv(one, f"model.layers.{i}.self_attn.qkv_proj")
        layers.append(one)
    return sizes, layers
