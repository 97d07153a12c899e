"""Qwen2 and Qwen2.5: biases on q, k and v, sliding windows on some layers by config."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.models.config import layer_windows, model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import decoder, layer, read_sizes


def qwen2(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config)
    windows = layer_windows(config, sizes.layers)
    return decoder(sizes, [layer(sizes, i, window=w, qkv_bias=True) for i, w in enumerate(windows)])
