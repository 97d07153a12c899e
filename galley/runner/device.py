"""Chooses the backend and the number format from the configuration and the model.

Everything that differs between devices is behind `kernels.backend.Backend`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from galley.config import EngineConfig, ModelInfo
from galley.config.registries import BACKENDS
from galley.errors import ConfigError
from galley.kernels.backend import Backend, Dense, open_backend
from galley.kernels.ops import CacheLayer
from galley.models.registry import find_architecture
from galley.runner.kv_format import kv_format

log = logging.getLogger(__name__)


def dense_format(dtype: str, checkpoint_dtype: str) -> Dense:
    """Format of weights that are not quantised.

    `auto` is bfloat16 for every checkpoint, as vLLM's `auto` is on CPUs; float16 and float32
    checkpoints are rounded to it, which is logged. float16 is bfloat16 as well: there are no
    kernels for it.
    """
    if dtype in ("float32", "float"):
        return "f32"
    if dtype in ("float16", "half"):
        log.warning(
            "--dtype %s: computing in bfloat16, which has the same size. --dtype float32 keeps all "
            "bits of a float16 checkpoint.",
            dtype,
        )
        return "bf16"
    if dtype == "auto" and checkpoint_dtype in ("float16", "float32"):
        log.info(
            "The checkpoint is %s; computing in bfloat16. --dtype float32 keeps all its bits.",
            checkpoint_dtype,
        )
    return "bf16"


def choose_backend(name: str, architecture: str, able: Sequence[str]) -> str:
    """The backend for a model.

    Args:
        name: --backend; "auto" takes the architecture's preferred one.
        able: backends that can run the architecture, the preferred one first.

    Raises:
        ConfigError: the named backend cannot run it.
    """
    if name == "auto":
        return able[0]
    if name in BACKENDS and name not in able:
        raise ConfigError(
            f"--backend {name} cannot run {architecture}; {' or '.join(able)} can.",
            field="backend",
        )
    return name


def open_device(
    config: EngineConfig, dense: Dense, model_info: ModelInfo, layers: Sequence[CacheLayer]
) -> Backend:
    """The backend that the configuration and the model ask for, with its compute threads.

    Args:
        layers: caches of the model.

    Raises:
        ConfigError: it is not installed, cannot run the model, or cannot promise what
            --batch-invariant asks.
        ModelError: the architecture is not supported.
    """
    device = config.device
    able = find_architecture(model_info).backends
    backend = open_backend(
        choose_backend(device.backend, model_info.architecture, able),
        dense,
        threads=device.num_threads or 0,
        eager=config.model.enforce_eager,
        quantized_activations=config.model.quantized_activations,
        kv=kv_format(config.cache, dense, model_info, layers),
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
