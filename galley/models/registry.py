"""Which class builds which architecture. A new family is one file and one line here."""

from __future__ import annotations

import importlib

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.layers.weights import WeightSource
from galley.models.decoder import Decoder, Stage
from galley.quant import check_quantization

#: Architecture, as config.json names it → module and class.
ARCHITECTURES: dict[str, tuple[str, str]] = {
    "LlamaForCausalLM": ("galley.models.llama", "LlamaForCausalLM"),
    "MistralForCausalLM": ("galley.models.llama", "MistralForCausalLM"),
    "Qwen2ForCausalLM": ("galley.models.qwen2", "Qwen2ForCausalLM"),
    "Qwen3ForCausalLM": ("galley.models.qwen3", "Qwen3ForCausalLM"),
}


def build_model(model_info: ModelInfo, source: WeightSource, stage: Stage) -> Decoder:
    """The model that the checkpoint's architecture names, its weights taken from `source`.

    Raises:
        ModelError: the architecture is not one of `ARCHITECTURES`, its quantization or a config
            value is not supported, or a tensor is missing or misshapen. Left-over tensors are
            the source's to report (`CheckpointWeights.finish`).
    """
    place = ARCHITECTURES.get(model_info.architecture)
    if place is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(
            f"architecture {model_info.architecture!r} is not supported; supported are {known}"
        )
    check_quantization(model_info)
    model: Decoder = getattr(importlib.import_module(place[0]), place[1])(model_info, source, stage)
    return model
