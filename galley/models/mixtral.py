"""Mixtral: Mistral with a mixture of experts in each layer."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import decoder, layer, read_sizes
from galley.models.mixture import experts, mixture, read_routing


def mixtral(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config)
    window = config.optional_int("sliding_window") or 0
    routing = read_routing(config)
    layers = []
    for i in range(sizes.layers):
        prefix = f"model.layers.{i}.block_sparse_moe"
        parts = experts(
            f"{prefix}.experts",
            routing.experts,
            sizes.hidden,
            sizes.intermediate,
            names=("w1", "w3", "w2"),
        )
        moe = mixture(prefix, sizes.hidden, routing, parts)
        layers.append(replace(layer(sizes, i, window=window), mlp=moe))
    return decoder(sizes, layers)
