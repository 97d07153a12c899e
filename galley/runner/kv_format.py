"""Chooses the number format of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from galley.config import CacheConfig, ModelInfo
from galley.errors import ConfigError
from galley.kernels.backend import Dense, dense_kv
from galley.kernels.ops import CacheLayer, KVLayer, LatentLayer
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
    numbers = _with_exceptions(numbers, cache.kv_cache_dtype_skip_layers, dense_kv(dense), layers)
    if cache.calculate_kv_scales:
        if not numbers.is_codes:
            raise ConfigError(
                f"--calculate-kv-scales: a KV cache in {numbers.name} has no scales. Add "
                "--kv-cache-dtype fp8, or omit the flag.",
                field="calculate_kv_scales",
            )
        numbers = replace(numbers, token_scales=True)
    if numbers.token_scales and any(isinstance(layer, LatentLayer) for layer in layers):
        raise ConfigError(
            f"--kv-cache-dtype {name}: a latent KV cache ({model_info.architecture}) has no scales "
            "per token and head. Use fp8, fp8_e5m2 or bfloat16, without --calculate-kv-scales.",
            field="kv_cache_dtype",
        )
    return numbers


def _with_exceptions(
    numbers: KVFormat, names: Sequence[str], plain: KVFormat, layers: Sequence[CacheLayer]
) -> KVFormat:
    """The format where the layers that are named have the plain one, as queries have.

    Raises ConfigError for a name of no layer with a KV cache.
    """
    caches = [layer for layer in layers if isinstance(layer, KVLayer | LatentLayer)]
    known = {layer.number for layer in caches}
    excepted: set[int] = set()
    for name in names:
        if name == "sliding_window":
            found = {c.number for c in caches if isinstance(c, KVLayer) and c.window}
        else:
            found = known & ({int(name)} if name.isdecimal() else set())
        if not found:
            raise ConfigError(
                f"--kv-cache-dtype-skip-layers {name}: the model has no such layer with a KV "
                f"cache; a number from {min(known, default=0)} to {max(known, default=0)}, or "
                "sliding_window where there are windows, is needed.",
                field="kv_cache_dtype_skip_layers",
            )
        excepted |= found
    if not (excepted or numbers.is_codes):
        return numbers
    return replace(numbers, excepted=frozenset(excepted), plain=plain.name)
