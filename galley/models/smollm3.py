"""SmolLM3: Llama with layers that do not rotate q and k."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.models.config import ModelFields, layer_windows, model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import biased_layers, decoder, read_sizes, with_attention


def smollm3(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info).with_defaults(tie_word_embeddings=True)
    sizes = read_sizes(config, theta=2_000_000.0)
    rotates, windows = rotating_layers(config, sizes.layers), layer_windows(config, sizes.layers)
    layers = [
        with_attention(layer, window=window, rotary=sizes.rotary if rotary else None)
        for layer, window, rotary in zip(
            biased_layers(config, sizes), windows, rotates, strict=True
        )
    ]
    return decoder(sizes, layers)


def rotating_layers(config: ModelFields, num_layers: int) -> list[bool]:
    """`no_rope_layers`, which has 1 for layers that rotate; or all but every n-th."""
    rotates = config.values.get("no_rope_layers")
    if rotates is None:
        interval = config.integer("no_rope_layer_interval", 4, least=1)
        return [(i + 1) % interval != 0 for i in range(num_layers)]
    if not isinstance(rotates, list) or len(rotates) != num_layers or not set(rotates) <= {0, 1}:
        raise config.wrong("no_rope_layers", f"{num_layers} of 0 or 1")
    return [bool(flag) for flag in rotates]
