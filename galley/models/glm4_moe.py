"""GLM-4-MoE and dots.llm1: DeepSeek's mixtures in layers of ordinary attention."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.models.config import layer_windows, model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import decoder, layer, read_sizes
from galley.models.mixture import deepseek_mixture, deepseek_routing, is_dense


def glm4_moe(model_info: ModelInfo) -> DecoderSpec:
    """Heads are rotated in part; q and k are normalised by config. A layer that predicts a further
    token is not used."""
    config = model_fields(model_info)
    sizes = read_sizes(config, partial_rotary=True)
    bias, qk_norm = config.flag("attention_bias", False), config.flag("use_qk_norm", False)
    routing = deepseek_routing(config)
    layers = []
    for i in range(sizes.layers):
        spec = layer(sizes, i, qkv_bias=bias, qk_norm=qk_norm)
        if not is_dense(config, i):
            moe = deepseek_mixture(config, f"model.layers.{i}.mlp", sizes.hidden, routing)
            spec = replace(spec, mlp=moe)
        layers.append(spec)
    model = decoder(sizes, layers)
    return replace(model, ignored=(*model.ignored, f"model.layers.{sizes.layers}."))


def dots1(model_info: ModelInfo) -> DecoderSpec:
    """q and k are normalised per head; windows by config."""
    config = model_fields(model_info)
    sizes = read_sizes(config)
    bias = config.flag("attention_bias", False)
    routing = deepseek_routing(config)
    windows = layer_windows(config.with_defaults(use_sliding_window=True), sizes.layers)
    layers = []
    for i, window in enumerate(windows):
        spec = layer(sizes, i, window=window, qkv_bias=bias, out_bias=bias, qk_norm=True)
        if not is_dense(config, i):
            moe = deepseek_mixture(config, f"model.layers.{i}.mlp", sizes.hidden, routing)
            spec = replace(spec, mlp=moe)
        layers.append(spec)
    return decoder(sizes, layers)
