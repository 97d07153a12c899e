"""Qwen3 (dense): q and k are normalised per head before the rotation."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.layers.weights import WeightSource
from galley.models.config import layer_windows, model_fields
from galley.models.decoder import Decoder, Stage
from galley.models.llama import read_attention, read_spec


class Qwen3ForCausalLM(Decoder):
    def __init__(self, model_info: ModelInfo, source: WeightSource, stage: Stage) -> None:
        config = model_fields(model_info)
        windows = layer_windows(config, config.integer("num_hidden_layers", least=1))
        bias = config.flag("attention_bias", False)
        eps = config.number("rms_norm_eps", 1e-6)
        attention = read_attention(config, qkv_bias=bias, out_bias=bias, qk_norm_eps=eps)
        super().__init__(read_spec(config, attention, windows), source, stage)
