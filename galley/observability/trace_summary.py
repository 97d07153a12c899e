"""Where the time of a recorded run went, by a trace that `perfetto.trace_events` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.errors import ConfigError

#: Parts of a step, in order; what lies between two steps is "between".
PARTS = ("schedule", "execute", "commit")
_KINDS = ("decodes alone", "decodes with prompts", "prompts alone")


class Share(msgspec.Struct, frozen=True):
    """Times of one kind, in milliseconds.

    Attributes:
        share: of the whole run.
    """

    count: int
    total: float
    share: float
    mean: float
    p50: float
    p99: float
    longest: float


class StepKind(msgspec.Struct, frozen=True):
    """Steps of one kind.

    Attributes:
        tokens: computed in them; rate: of these a second.
    """

    time: Share
    tokens: int
    rate: float


class TraceSummary(msgspec.Struct, frozen=True):
    """Attributes:
    seconds: from the first step's begin to the last one's end.
    steps, tokens, preemptions, started, ended: in all.
    parts: schedule, execute, commit, between.
    kinds: steps by what they computed.
    slowest: (step, milliseconds, rows, tokens), the longest first.
    running, waiting: the most requests at once.
    free_blocks: the fewest.
    """

    seconds: float
    steps: int
    tokens: int
    preemptions: int
    started: int
    ended: int
    parts: dict[str, Share]
    kinds: dict[str, StepKind]
    slowest: list[tuple[int, float, int, int]]
    running: int
    waiting: int
    free_blocks: int


def read_trace(path: Path) -> list[Mapping[str, Any]]:
    """The events of a file in the format of Chrome traces.

    Raises ConfigError if it cannot be read or holds no steps.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}.", field="file") from e
    except ValueError as e:
        raise ConfigError(f"{path} is not JSON: {e}.", field="file") from e
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list) or not all(isinstance(e, dict) for e in events):
        raise ConfigError(f"{path} is not a Chrome trace: it has no traceEvents.", field="file")
    if not any(_is_step(event) for event in events):
        raise ConfigError(
            f"{path} has no steps. /start_profile and /stop_profile of a server with "
            "--profiler-config write a trace that has.",
            field="file",
        )
    return events


def summarize(events: Sequence[Mapping[str, Any]], slowest: int = 5) -> TraceSummary:
    """Summarise the steps of a trace; it has at least one."""
    steps = sorted((e for e in events if _is_step(e)), key=lambda e: float(e["ts"]))
    begin = np.array([float(e["ts"]) for e in steps]) / 1e3
    lasted = np.array([float(e["dur"]) for e in steps]) / 1e3
    whole = float((begin + lasted).max() - begin[0])
    gaps = np.maximum(begin[1:] - (begin + lasted)[:-1], 0.0)
    parts = {name: _share(_durations(events, name), whole) for name in PARTS}
    parts["between"] = _share(gaps, whole)
    arguments = {
        name: np.array([int(e.get("args", {}).get(name, 0)) for e in steps])
        for name in ("num_rows", "num_tokens", "num_decodes", "preemptions", "started", "ended")
    }
    tokens, decodes = arguments["num_tokens"], arguments["num_decodes"]
    masks = (tokens == decodes, (decodes > 0) & (tokens > decodes), (decodes == 0) & (tokens > 0))
    kinds = {
        kind: StepKind(
            _share(lasted[mask], whole),
            int(tokens[mask].sum()),
            float(tokens[mask].sum() / lasted[mask].sum() * 1e3),
        )
        for kind, mask in zip(_KINDS, masks, strict=True)
        if mask.any()
    }
    longest = np.argsort(-lasted, kind="stable")[:slowest]
    rows = arguments["num_rows"]
    return TraceSummary(
        seconds=whole / 1e3,
        steps=len(steps),
        tokens=int(tokens.sum()),
        preemptions=int(arguments["preemptions"].sum()),
        started=int(arguments["started"].sum()),
        ended=int(arguments["ended"].sum()),
        parts=parts,
        kinds=kinds,
        slowest=[
            (int(steps[i]["name"].split()[1]), float(lasted[i]), int(rows[i]), int(tokens[i]))
            for i in longest.tolist()
        ],
        running=max(_counter(events, "num_running"), default=0),
        waiting=max(_counter(events, "num_waiting"), default=0),
        free_blocks=min(_counter(events, "blocks_free"), default=0),
    )


def _is_step(event: Mapping[str, Any]) -> bool:
    name = str(event.get("name", "")).split()
    return (
        event.get("ph") == "X"
        and len(name) == 2
        and name[0] == "step"
        and name[1].isdigit()
        and isinstance(event.get("ts"), int | float)
        and isinstance(event.get("dur"), int | float)
    )


def _durations(events: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    found = [float(e["dur"]) for e in events if e.get("ph") == "X" and e.get("name") == name]
    return np.array(found, np.float64) / 1e3


def _counter(events: Sequence[Mapping[str, Any]], name: str) -> list[int]:
    counted = (e["args"] for e in events if e.get("ph") == "C" and "args" in e)
    return [int(args[name]) for args in counted if name in args]


def _share(values: NDArray[np.float64], whole: float) -> Share:
    if not len(values):
        return Share(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    p50, p99 = np.percentile(values, (50, 99))
    total = float(values.sum())
    return Share(
        len(values),
        total,
        total / whole if whole else 0.0,
        float(values.mean()),
        float(p50),
        float(p99),
        float(values.max()),
    )
