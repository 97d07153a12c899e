"""EuroBERT: Llama's layers over the whole sequence, without a head."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import biased_layers, decoder, read_sizes, with_attention


def eurobert(model_info: ModelInfo) -> DecoderSpec:
    """Biases by config. The embedding stands in for the head."""
    config = model_fields(model_info)
    sizes = replace(read_sizes(config, theta=250000.0, eps=1e-5), tied=True)
    layers = [with_attention(layer, causal=False) for layer in biased_layers(config, sizes)]
    return decoder(sizes, layers)
