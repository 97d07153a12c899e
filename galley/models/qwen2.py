"""Qwen2 and Qwen2.5: biases on q, k and v, sliding windows on some layers by config."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.layers.weights import WeightSource
from galley.models.config import layer_windows, model_fields
from galley.models.decoder import Decoder, Stage
from galley.models.llama import read_attention, read_spec


class Qwen2ForCausalLM(Decoder):
    def __init__(self, model_info: ModelInfo, source: WeightSource, stage: Stage) -> None:
        config = model_fields(model_info)
        windows = layer_windows(config, config.integer("num_hidden_layers", least=1))
        attention = read_attention(config, qkv_bias=True, out_bias=False)
        super().__init__(read_spec(config, attention, windows), source, stage)
