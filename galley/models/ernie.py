"""ERNIE 4.5: Llama with interleaved rotary embedding."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import decoder, layer, read_sizes


def ernie(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info).with_defaults(tie_word_embeddings=True)
    sizes = read_sizes(config, theta=500000.0, eps=1e-5, interleaved=True)
    bias = config.flag("use_bias", False)
    layers = [
        layer(sizes, i, qkv_bias=bias, out_bias=bias, mlp_bias=bias) for i in range(sizes.layers)
    ]
    return decoder(sizes, layers)
