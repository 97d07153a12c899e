"""Qwen3 (dense): q and k are normalised per head before the rotation."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.models.config import layer_windows, model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import decoder, layer, read_sizes


def qwen3(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config)
    windows = layer_windows(config, sizes.layers)
    bias = config.flag("attention_bias", False)
    layers = [
        layer(sizes, i, window=w, qkv_bias=bias, out_bias=bias, qk_norm=True)
        for i, w in enumerate(windows)
    ]
    return decoder(sizes, layers)
