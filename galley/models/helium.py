"""Helium: Llama with interleaved rotary embedding."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import biased_layers, decoder, read_sizes


def helium(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, theta=100000.0, eps=1e-8, interleaved=True)
    return decoder(sizes, biased_layers(config, sizes))
