"""The progress bar of offline generation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Seconds between two redraws: their cost must be negligible.
INTERVAL = 0.1


@contextmanager
def progress_bar(total: int, description: str, shown: bool) -> Iterator[ProgressBar | None]:
    """A bar on stderr with the time gone and left and tokens per second; None unless `shown`."""
    if not shown or not total:
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left,"),
        TextColumn("{task.fields[speed]}"),
    )
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        yield ProgressBar(bar, bar.add_task(description, total=total, speed=""), total)


class ProgressBar:
    """Counts prompts and shows the average speed."""

    def __init__(self, bar: Progress, task: TaskID, total: int) -> None:
        self._bar = bar
        self._task = task
        self._total = total
        self._start = time.perf_counter()
        self._drawn = 0.0

    def is_due(self, num_done: int) -> bool:
        """Whether it is time to redraw; always at the end."""
        return num_done == self._total or time.perf_counter() - self._drawn >= INTERVAL

    def draw(self, num_done: int, prompt_tokens: int, output_tokens: int) -> None:
        """Show the progress: prompt tokens of finished prompts, output tokens of all."""
        self._drawn = time.perf_counter()
        seconds = max(self._drawn - self._start, 1e-9)
        speed = f"{prompt_tokens / seconds:,.1f} tokens/s in, {output_tokens / seconds:,.1f} out"
        self._bar.update(self._task, completed=num_done, speed=speed, refresh=True)
