"""The Prometheus registry of a process, and of several that share one port.

With PROMETHEUS_MULTIPROC_DIR set, metrics are kept in mapped files in that folder, one set per
process, and each process exposes the sum of all. prometheus_client reads the variable when it is
imported, so the launcher sets it before it starts its children (`prepare_folder`, `sweep`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: counter_PID.db, gauge_MODE_PID.db …
_FILE = re.compile(r"(?:counter|histogram|summary|gauge_[a-z]+)_(\d+)\.db")


def shares_metrics(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process exposes its metrics together with those of others."""
    return bool(env.get(VARIABLE))


def new_registry() -> CollectorRegistry:
    from prometheus_client import (
        CollectorRegistry,
        GCCollector,
        PlatformCollector,
        ProcessCollector,
    )

    registry = CollectorRegistry()
    if not shares_metrics():
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
    return registry


def exposition(
    registry: CollectorRegistry, derived: Sequence[Callable[[Iterable[Metric]], Metric]] = ()
) -> tuple[bytes, str]:
    """All metrics as text, and its content type.

    Args:
        derived: make a metric of the sums of the others, where several processes are summed.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    if shares_metrics():
        from prometheus_client.multiprocess import MultiProcessCollector

        class Summed(MultiProcessCollector):
            def collect(self) -> Iterator[Metric]:
                metrics = list(super().collect())  # type: ignore[no-untyped-call]
                yield from metrics
                yield from (make(metrics) for make in derived)

        registry = CollectorRegistry()
        Summed(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST


def prepare_folder(folder: str) -> None:
    """Create the folder for a new set of processes, and remove the files of earlier ones."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    sweep(folder)


def sweep(folder: str) -> None:
    """Remove the files of processes that have ended."""
    for path in Path(folder).glob("*.db"):
        match = _FILE.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            path.unlink(missing_ok=True)
