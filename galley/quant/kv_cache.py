"""A quantized checkpoint's settings of the KV cache.

compressed-tensors has `kv_cache_scheme`, an object like that of weights; ModelOpt
`kv_cache_quant_algo` or `kv_cache_scheme`. The scales of a layer are tensors beside its projections
(`layers.context`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.kv.format import KVFormat

#: Keys of a scheme and the values that can run.
_RUNS: dict[str, tuple[Any, ...]] = {
    "num_bits": (8,),
    "type": ("float",),
    "strategy": (None, "tensor"),
    "dynamic": (None, False),
    "symmetric": (None, True),
}


def checkpoint_kv_format(model_info: ModelInfo) -> KVFormat | None:
    """The format that the checkpoint declares; None if it declares none.

    Raises ModelError naming what is not supported.
    """
    config = model_info.hf_config
    table = config.get("quantization_config") or config.get("compression_config") or {}
    if not isinstance(table, Mapping):
        return None
    algorithm, scheme = table.get("kv_cache_quant_algo"), table.get("kv_cache_scheme")
    if not algorithm and not scheme:
        return None
    if scheme and isinstance(scheme, Mapping):
        for key, values in _RUNS.items():
            if scheme.get(key) not in values:
                raise _error(f"kv_cache_scheme.{key} is {scheme.get(key)!r}")
    elif scheme:
        raise _error(f"kv_cache_scheme is {scheme!r}")
    elif algorithm != "FP8":
        raise _error(f"kv_cache_quant_algo is {algorithm!r}")
    return KVFormat("fp8_e4m3")


def _error(what: str) -> ModelError:
    return ModelError(
        f"quantization_config: {what}; FP8 with one scale per layer can run. --kv-cache-dtype "
        "bfloat16 ignores it"
    )
