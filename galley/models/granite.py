"""Granite 3 and 4 (dense): Llama with multipliers of embeddings, scores, residuals and logits."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import biased_layers, decoder, read_sizes, with_attention


def granite(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config)
    scale = config.number("attention_multiplier", 1.0)
    residual = config.number("residual_multiplier", 1.0)
    layers = [
        replace(with_attention(layer, scale=scale), residual=residual)
        for layer in biased_layers(config, sizes)
    ]
    return replace(
        decoder(sizes, layers),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        logits_scale=1 / config.above_zero("logits_scaling", 1.0),
    )
