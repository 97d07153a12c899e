"""The quantization methods, by the `quant_method` of a checkpoint's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.quant import awq, bitsandbytes, compressed_tensors, fp8, gptq
from galley.quant.scheme import PlainScheme, Scheme

if TYPE_CHECKING:
    from galley.quant.online import Online

#: Method → its scheme, made of the checkpoint's `quantization_config`; raises ModelError naming a
#: value that is not supported.
METHODS: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "awq": awq.AWQ,
    "bitsandbytes": bitsandbytes.BitsAndBytes,
    "compressed-tensors": compressed_tensors.CompressedTensors,
    "fp8": fp8.FP8,
    "gguf": lambda config: PlainScheme(),
    "gptq": gptq.GPTQ,
}


def scheme_of(model_info: ModelInfo) -> Scheme:
    """How the checkpoint's matrices are stored. Raises ModelError if the method is unknown."""
    method = model_info.quantization
    if method is None:
        return PlainScheme()
    if method not in METHODS:
        raise ModelError(
            f"checkpoints quantized by {method} are not supported; {', '.join(METHODS)} are"
        )
    config = model_info.hf_config
    table = config.get("quantization_config") or config.get("compression_config") or {}
    return METHODS[method](table)


def online_of(model_info: ModelInfo) -> Online | None:
    """How weights are quantized while they are loaded; None = not at all."""
    if model_info.online is None:
        return None
    from galley.quant import online  # most models do not need it

    return online.METHODS[model_info.online]
