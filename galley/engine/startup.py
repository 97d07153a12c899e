"""Start-up progress and summary logging."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from galley.config import EngineConfig, ModelInfo
from galley.executor.executor import Executor
from galley.kv import Capacity, capacity

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

#: Seconds of loading before anything is shown: small models are loaded by then.
PATIENCE = 1.0
#: Seconds between two lines of a log that is not a terminal.
INTERVAL = 10.0
GIB, MIB = 2**30, 2**20


class LoadProgress:
    """Called with each tensor that is read; shows a bar on a terminal, or an occasional line in a
    log, with the speed and the time that is left.

    A context manager: leaving it removes the bar.

    Args:
        on_read: also called with each tensor.
    """

    def __init__(self, on_read: Callable[[], None] | None = None) -> None:
        self._on_read = on_read
        self._start = time.perf_counter()
        self._due = self._start + PATIENCE
        self._terminal = sys.stderr.isatty()
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._on_read is not None:
            self._on_read()
        now = time.perf_counter()
        if now < self._due:
            return
        if self._terminal:
            self._due = now + 0.1
            self._draw(done, total)
        else:
            self._due = now + INTERVAL
            log.info(
                "Loading weights: %.1f of %.1f GB after %.0f s, %s.",
                *(done / 1e9, total / 1e9, self.seconds, _pace(done, total, self.seconds)),
            )

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

            speed = TextColumn("{task.fields[pace]}")
            columns = ("Loading weights", BarColumn(), DownloadColumn(), speed)
            console = Console(stderr=True)
            self._bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
            self._bar.add_task("", total=total, pace="")
            self._bar.start()
        pace = _pace(done, total, self.seconds)
        self._bar.update(self._bar.task_ids[0], completed=done, pace=pace, refresh=True)

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _pace(done: int, total: int, seconds: float) -> str:
    """Speed, and time that is left at this speed."""
    speed = done / max(seconds, 1e-9)
    return f"{speed / 1e9:.2f} GB/s, {(total - done) / max(speed, 1):.0f} s left"


def kv_capacity(config: EngineConfig, executor: Executor) -> Capacity:
    """Capacity of the KV cache of a resolved configuration."""
    max_chunk = config.scheduler.max_num_batched_tokens
    assert max_chunk is not None, "the configuration is not resolved"
    num_blocks = executor.num_blocks - 1  # without the null block
    return capacity(executor.groups, num_blocks, executor.max_model_len, max_chunk)


def log_start(
    config: EngineConfig, model_info: ModelInfo, executor: Executor, seconds: float
) -> None:
    """Log what was loaded, the size of the KV cache, and the limits of a step."""
    [memory] = executor.rpc("memory")
    name = (config.model.served_model_name or (config.model.model,))[0]
    log.info(
        "Loaded %s (%s, %s) in %.1f s: weights %.0f MiB.",
        name,
        model_info.architecture,
        model_info.dtype,
        seconds,
        memory["weights"] / MIB,
    )
    fits = kv_capacity(config, executor)
    log.info(
        "KV cache: %s tokens (%s blocks of %d), up to %.2f GiB. Maximum concurrency for %s tokens "
        "per request: %.1fx",
        f"{fits.tokens:,}",
        f"{executor.num_blocks - 1:,}",
        config.cache.block_size,
        memory["kv_cache"] / GIB,
        f"{executor.max_model_len:,}",
        fits.sequences,
    )
    left = memory["available"] - memory["weights"] - memory["activations"] - memory["adapters"]
    if config.cache.kv_cache_memory_bytes is not None and memory["kv_cache"] > left:
        log.warning(
            "--kv-cache-memory-bytes: the KV cache may grow to %.2f GiB, but %.2f GiB are free: "
            "memory runs out before it is full.",
            memory["kv_cache"] / GIB,
            max(left, 0) / GIB,
        )
    scheduler = config.scheduler
    log.info(
        "A step takes up to %s tokens of %d sequences, on %d thread%s.",
        f"{scheduler.max_num_batched_tokens:,}",
        scheduler.max_num_seqs,
        config.device.num_threads,
        "" if config.device.num_threads == 1 else "s",
    )
