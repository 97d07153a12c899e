"""Which quantised checkpoints can be taken, by the `quant_method` of their configuration."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.quant import compressed_tensors

METHODS = ("gguf", "compressed-tensors")


def check_quantization(model_info: ModelInfo) -> None:
    """Raise ModelError for a checkpoint whose weights are quantised in a way that is unknown."""
    method = model_info.quantization
    if method is None or method == "gguf":
        return
    if method not in METHODS:
        raise ModelError(
            f"checkpoints quantized by {method} are not supported; {', '.join(METHODS)} are"
        )
    config = model_info.hf_config
    table = config.get("quantization_config") or config.get("compression_config") or {}
    compressed_tensors.check_scheme(table)
