"""The quantization methods, by the `quant_method` of a checkpoint's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.quant import (
    auto_round,
    awq,
    bitsandbytes,
    compressed_tensors,
    fp8,
    gptq,
    hqq,
    modelopt,
    mxfp4,
    quark,
    torchao,
)
from galley.quant.scheme import PlainScheme, Scheme

if TYPE_CHECKING:
    from galley.quant.online import Online

#: Method → its scheme, made of the checkpoint's `quantization_config`; raises ModelError naming a
#: value that is not supported.
METHODS: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "auto-round": auto_round.AutoRound,
    "awq": awq.AWQ,
    "bitsandbytes": bitsandbytes.BitsAndBytes,
    "compressed-tensors": compressed_tensors.CompressedTensors,
    "fp8": fp8.FP8,
    "gguf": lambda config: PlainScheme(),
    "gptq": gptq.GPTQ,
    "hqq": hqq.HQQ,
    "modelopt": modelopt.ModelOpt,
    "mxfp4": lambda config: mxfp4.MXFP4(),
    "quark": quark.Quark,
    "torchao": torchao.TorchAO,
}
#: Other names of methods.
_ALIASES = {
    "intel/auto-round": "auto-round",
    "auto_round": "auto-round",
    "inc": "auto-round",
    "modelopt_fp4": "modelopt",
    "modelopt_mixed": "modelopt",
    "modelopt_mxfp8": "modelopt",
    "gpt_oss_mxfp4": "mxfp4",
}


def scheme_of(model_info: ModelInfo) -> Scheme:
    """How the checkpoint's matrices are stored. Raises ModelError if the method is unknown."""
    method = model_info.quantization
    if method is None:
        return PlainScheme()
    method = _ALIASES.get(method, method)
    if method not in METHODS:
        known = ", ".join(METHODS)
        raise ModelError(f"checkpoints quantized by {method} are not supported; {known} are")
    config = model_info.hf_config
    table = config.get("quantization_config") or config.get("compression_config") or {}
    return METHODS[method](table)


def online_of(model_info: ModelInfo) -> Online | None:
    """How weights are quantized while they are loaded; None = not at all."""
    if model_info.online is None:
        return None
    from galley.quant import online  # most models do not need it

    return online.METHODS[model_info.online]
