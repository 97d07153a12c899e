"""Seed-OSS: Llama with biases on q, k and v."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import decoder, layer, read_sizes


def seed_oss(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config)
    bias, out_bias = config.flag("attention_bias", True), config.flag("attention_out_bias", False)
    mlp_bias = config.flag("mlp_bias", False)
    layers = [
        layer(sizes, i, qkv_bias=bias, out_bias=out_bias, mlp_bias=mlp_bias)
        for i in range(sizes.layers)
    ]
    return decoder(sizes, layers)
