"""Chooses the number format of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

from galley.config import CacheConfig, ModelInfo
from galley.errors import ConfigError
from galley.kernels.backend import Dense, dense_kv
from galley.kernels.ops import CacheLayer, LatentLayer
from galley.kv.format import KVFormat
from galley.quant.kv_cache import checkpoint_kv_format

#: --kv-cache-dtype → the format; not `auto`.
FORMATS = {
    "float32": KVFormat("float32"),
    "bfloat16": KVFormat("bfloat16"),
    "fp8": KVFormat("fp8_e4m3"),
    "fp8_e4m3": KVFormat("fp8_e4m3"),
    "fp8_e5m2": KVFormat("fp8_e5m2"),
    "fp8_per_token_head": KVFormat("fp8_e4m3", token_scales=True),
    "int8_per_token_head": KVFormat("int8", token_scales=True),
}


def kv_format(
    cache: CacheConfig, dense: Dense, model_info: ModelInfo, layers: Sequence[CacheLayer]
) -> KVFormat:
    """The format that the configuration asks for, or else the checkpoint.

    Args:
        dense: format of weights that are not quantised, and of the cache if nothing else is said.
        layers: caches of the model.

    Raises:
        ConfigError: the model cannot have the format, or it has no scales to calculate.
        ModelError: the checkpoint declares a format that is not supported.
    """
    name = cache.kv_cache_dtype
    if name != "auto":
        numbers = FORMATS[name]
    else:
        numbers = checkpoint_kv_format(model_info) or dense_kv(dense)
    if cache.calculate_kv_scales:
        if not numbers.is_codes:
            raise ConfigError(
                f"--calculate-kv-scales: a KV cache in {numbers.name} has no scales. Add "
                "--kv-cache-dtype fp8, or omit the flag.",
                field="calculate_kv_scales",
            )
        numbers = KVFormat(numbers.name, token_scales=True)
    if numbers.token_scales and any(isinstance(layer, LatentLayer) for layer in layers):
        raise ConfigError(
            f"--kv-cache-dtype {name}: a latent KV cache ({model_info.architecture}) has no scales "
            "per token and head. Use fp8, fp8_e5m2 or bfloat16, without --calculate-kv-scales.",
            field="kv_cache_dtype",
        )
    return numbers
