"""Arcee: Llama with a plain feed-forward block of squared relu."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.plain_mlp import PlainMLPSpec
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import read_activation
from galley.models.llama import decoder, layer, mlp, read_sizes


def arcee(model_info: ModelInfo) -> DecoderSpec:
    """Biases by config."""
    config = model_fields(model_info)
    activation = read_activation(config, "hidden_act", "relu2")
    sizes = read_sizes(config.replaced(hidden_act="silu"), eps=1e-5)
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)

    def plain_layer(index: int) -> LayerSpec:
        gated = mlp(sizes, f"model.layers.{index}.mlp")
        return replace(
            layer(sizes, index, qkv_bias=bias, out_bias=bias),
            mlp=PlainMLPSpec(gated.up, gated.down, activation, mlp_bias),
        )

    return decoder(sizes, [plain_layer(i) for i in range(sizes.layers)])
