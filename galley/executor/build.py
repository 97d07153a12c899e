"""Builds the executor for a configuration and a checkpoint."""

from __future__ import annotations

from pathlib import Path

from galley.config import EngineConfig, ModelInfo
from galley.errors import ConfigError
from galley.executor.executor import Executor
from galley.executor.local import LocalExecutor
from galley.executor.loopback import LoopbackExecutor
from galley.kernels.backend import MemoryAllocator
from galley.loader import Checkpoint
from galley.runner.load import Progress
from galley.runner.runner import Runner
from galley.spec.speculator import Speculator


def build(
    config: EngineConfig,
    model_info: ModelInfo,
    checkpoint: Checkpoint,
    available: int,
    progress: Progress | None = None,
    kv_memory: MemoryAllocator | None = None,
    speculator: Speculator | None = None,
    pooling: bool = False,
    adapters: Path | None = None,
) -> Executor:
    """Load the model, size its KV cache and make the executor of --distributed-executor-backend.

    Args:
        config: resolved.
        available: bytes of memory that could be taken before anything was loaded.
        kv_memory: allocates the KV cache; None = in ordinary memory.
        speculator: proposes drafts after each step; None = no speculation.
        pooling: keep the final hidden states of a step, for requests that pool.
        adapters: folder of packed adapters; None = no request has one.

    Raises:
        ConfigError: more than one rank is requested, or memory is short.
        ModelError: the checkpoint does not fit the model.
    """
    parallel = config.parallel
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if (size := getattr(parallel, name)) != 1:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} {size}: a model runs on one rank in this version; use 1.", field=name
            )
    runner = Runner(
        config,
        model_info,
        checkpoint,
        available,
        progress,
        kv_memory,
        speculator,
        pooling,
        adapters,
    )
    if parallel.distributed_executor_backend == "loopback":
        return LoopbackExecutor(runner)
    return LocalExecutor(runner)
