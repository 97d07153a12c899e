"""MiMo: Qwen2 with layers for further tokens, which `models.mtp` describes."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.models.decoder import DecoderSpec
from galley.models.qwen2 import qwen2


def mimo(model_info: ModelInfo) -> DecoderSpec:
    spec = qwen2(model_info)
    return replace(spec, ignored=(*spec.ignored, "model.mtp_layers."))
