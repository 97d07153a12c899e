"""Which device computes, and in which number format: from configuration to an opened backend.

All that differs between devices is behind `kernels.backend.Backend`; this is where one is chosen.
"""

from __future__ import annotations

import logging

from galley.config import EngineConfig
from galley.errors import ConfigError
from galley.kernels.backend import Backend, Dense, open_backend

log = logging.getLogger(__name__)


def dense_format(dtype: str, checkpoint_dtype: str) -> Dense:
    """Format of what is not quantised, and of the KV cache.

    `auto` is bfloat16 for every checkpoint, as vLLM's `auto` is on CPUs; float16 and float32
    checkpoints are rounded to it, and the log says so.

    Raises:
        ConfigError: float16 was asked for.
    """
    if dtype in ("float32", "float"):
        return "f32"
    if dtype in ("float16", "half"):
        raise ConfigError(
            f"--dtype {dtype} is not supported: CPUs compute float16 no faster than float32. "
            "Use bfloat16 (the same size) or float32 (keeps every bit of a float16 checkpoint).",
            field="dtype",
        )
    if dtype == "auto" and checkpoint_dtype in ("float16", "float32"):
        log.info(
            "The checkpoint is %s; computing in bfloat16. --dtype float32 keeps all its bits.",
            checkpoint_dtype,
        )
    return "bf16"


def open_device(config: EngineConfig, dense: Dense) -> Backend:
    """The backend that the configuration names, with its compute threads.

    Raises ConfigError where it is not installed, or cannot promise what --batch-invariant asks.
    """
    device = config.device
    backend = open_backend(
        device.backend,
        dense,
        threads=device.num_threads or 0,
        eager=config.model.enforce_eager,
        quantized_activations=config.model.quantized_activations,
    )
    if not backend.batch_invariant:
        if device.batch_invariant:
            raise ConfigError(
                f"--backend {backend.name} cannot promise that an answer does not depend on what "
                "else is computed, as --batch-invariant (VLLM_BATCH_INVARIANT=1) asks. Use "
                "--backend cpu.",
                field="batch_invariant",
            )
        log.warning(
            "With --backend %s an answer may depend on what else is computed.", backend.name
        )
    return backend
