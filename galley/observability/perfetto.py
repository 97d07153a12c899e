"""The step trace as a file that Perfetto (ui.perfetto.dev) and chrome://tracing open."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.errors import InvalidRequest
from galley.observability.step_trace import StepTrace

#: Name of a part of a step, and the fields at which it begins and ends.
_PARTS = (
    ("schedule", "begin", "submit"),
    ("execute", "submit", "sampled"),
    ("commit", "sampled", "end"),
)
_COUNTERS = {
    "requests": ("num_running", "num_waiting"),
    "tokens": ("num_tokens",),
    "free blocks": ("blocks_free",),
}
_ARGUMENTS = ("num_rows", "num_tokens", "num_decodes", "preemptions", "started", "ended")


def trace_events(records: NDArray[np.void], pid: int) -> list[dict[str, Any]]:
    """Steps as nested slices, queues and blocks as counters. Times in microseconds."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": "Galley engine"}},
        {"ph": "M", "pid": pid, "tid": 1, "name": "thread_name", "args": {"name": "steps"}},
    ]
    for r in records:
        whole = {"pid": pid, "tid": 1, "ph": "X", "name": f"step {int(r['step'])}"}
        events.append(
            {
                **whole,
                **_span(r, "begin", "end"),
                "args": {name: int(r[name]) for name in _ARGUMENTS},
            }
        )
        for name, begin, end in _PARTS:
            events.append({**whole, "name": name, **_span(r, begin, end)})
        for name, fields in _COUNTERS.items():
            args = {f: int(r[f]) for f in fields}
            events.append({"ph": "C", "pid": pid, "name": name, "ts": r["end"] * 1e6, "args": args})
    return events


def _span(record: np.void, begin: str, end: str) -> dict[str, float]:
    at = float(record[begin])
    return {"ts": at * 1e6, "dur": (float(record[end]) - at) * 1e6}


def profile_settings(
    config: Mapping[str, Any], prefix: str | None, delay: int | None, most: int | None
) -> tuple[str, str, int, int]:
    """Arguments of `Profile` besides the trace: --profiler-config, overridden by the call.

    Raises:
        InvalidRequest: no profiler is configured.
    """
    if not config.get("profiler"):
        raise InvalidRequest(
            'profiler_config must be {"profiler": "torch", "torch_profiler_dir": FOLDER}.',
            field="profiler_config",
        )
    overrides = {"delay_iterations": delay, "max_iterations": most}
    delay, most = (int(config.get(k) or 0) if v is None else v for k, v in overrides.items())
    return str(config["torch_profiler_dir"]), prefix or "", delay, most


class Profile:
    """A range of steps that is written to a file when it is stopped.

    It is limited by the ring of the step trace: of a longer range the last steps are written.

    Args:
        folder: created if necessary.
        prefix: prefix of the file's name.
        delay: steps to skip at first.
        most: number of steps to write; 0: all.
    """

    def __init__(
        self, trace: StepTrace, folder: str, prefix: str = "", delay: int = 0, most: int = 0
    ) -> None:
        self._trace = trace
        self._folder = Path(folder)
        self._prefix = "".join(c if c.isalnum() or c in "-_." else "_" for c in prefix)
        self._first = trace.last + delay
        self._most = most

    def write(self) -> str:
        """Write the file; returns its path."""
        records = self._trace.since(self._first)
        if self._most:
            records = records[records["step"] <= self._first + self._most]
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{self._prefix}galley-{os.getpid()}-{time.time_ns()}.json"
        path = self._folder / name
        document = {"displayTimeUnit": "ms", "traceEvents": trace_events(records, os.getpid())}
        path.write_text(json.dumps(document))
        return str(path)
