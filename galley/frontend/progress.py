"""The progress bar of offline generation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Seconds between two redraws: drawing must cost nothing beside a step.
INTERVAL = 0.1


class Meter(Protocol):
    """Told of prompts that are done and of tokens so far."""

    def update(self, num_done: int, prompt_tokens: int, output_tokens: int) -> None: ...


class _Silent:
    def update(self, num_done: int, prompt_tokens: int, output_tokens: int) -> None:
        return


@contextmanager
def progress_bar(total: int, description: str, shown: bool) -> Iterator[Meter]:
    """A bar on stderr with tokens per second; nothing where it is not wanted."""
    if not shown:
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        yield _Bar(bar, bar.add_task(description, total=total, speed=""), total)


class _Bar:
    def __init__(self, bar: Progress, task: TaskID, total: int) -> None:
        self._bar = bar
        self._task = task
        self._total = total
        self._start = time.perf_counter()
        self._drawn = 0.0

    def update(self, num_done: int, prompt_tokens: int, output_tokens: int) -> None:
        now = time.perf_counter()
        if now - self._drawn < INTERVAL and num_done < self._total:
            return
        self._drawn = now
        seconds = max(now - self._start, 1e-9)
        speed = f"{prompt_tokens / seconds:,.1f} tokens/s in, {output_tokens / seconds:,.1f} out"
        self._bar.update(self._task, completed=num_done, speed=speed, refresh=True)
