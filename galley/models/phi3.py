"""Phi-3 and Phi-4: q, k and v in one tensor, gate and up in one; heads may be rotated in part."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.weight_specs import fuse
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, attention, decoder, layer, mlp, read_sizes


def phi3(model_info: ModelInfo) -> DecoderSpec:
    """No biases; every layer has the window that the config names."""
    config = model_fields(model_info)
    sizes = read_sizes(config, eps=1e-5, partial_rotary=True)
    window = config.optional_int("sliding_window") or 0
    return decoder(sizes, [_layer(sizes, i, window) for i in range(sizes.layers)])


def _layer(sizes: Sizes, index: int, window: int) -> LayerSpec:
    prefix = f"model.layers.{index}"
    apart = attention(sizes, f"{prefix}.self_attn", window=window)
    q, k, v = fuse(f"{prefix}.self_attn.qkv_proj", (apart.q, apart.k, apart.v))
    gated = mlp(sizes, f"{prefix}.mlp")
    gate, up = fuse(f"{prefix}.mlp.gate_up_proj", (gated.gate, gated.up))
    return replace(
        layer(sizes, index),
        mixer=replace(apart, q=q, k=k, v=v),
        mlp=replace(gated, gate=gate, up=up),
    )
