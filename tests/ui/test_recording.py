"""Frames of an engine that the live view keeps, and the file that it saves."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import msgspec
import pytest

from galley.engine.core import EngineCore
from galley.engine.live_view import live_view
from galley.ui import FOLDER
from tests.engine.test_core import make_core, request
from tests.ui.node import run_node


def frames(core: EngineCore) -> list[Any]:
    """Frames of a watcher whose connection breaks: the last one has all steps again."""
    core.add([request(1, list(range(40)), max_tokens=40), request(2, [3], max_tokens=4)])
    found, seen = [], -1
    for _ in range(4):
        for _ in range(5):
            core.step()
        view = live_view(core, 0, seen)
        found.append(view)
        seen = view.columns["step"][-1]
    found.append(live_view(core, 0, -1))
    encoded: list[Any] = json.loads(msgspec.json.encode([{"engines": [one]} for one in found]))
    return encoded


def recorded(given: list[Any], expression: str) -> Any:
    """The value of an expression over the recording `r` of some frames."""
    text = json.dumps(given)
    body = f"const r = new m.Recording(); for (const f of {text}) r.add(f); return {expression};"
    return run_node(FOLDER, f"(m => {{ {body} }})(recording)", "recording")


@pytest.fixture(scope="module")
def given() -> list[Any]:
    return frames(make_core())


def test_steps_that_come_again_are_counted_once(given: list[Any]) -> None:
    """After a break another API server may answer, which sends the last steps again."""
    numbers = given[-1]["engines"][0]["columns"]["step"]
    steps, marks, events = recorded(
        given,
        "[r.steps.map(s => s.number), [...r.requests.values()].map(q => q.marks.length), r.events]",
    )
    assert steps == numbers
    assert sum(marks) == sum(given[-1]["engines"][0]["rows"]["counts"])
    assert events == []
    [gap] = recorded([given[0], *given[2:4]], "r.events.map(e => e.text)")
    assert gap == "5 steps were not seen here"


def test_the_file_is_in_chromes_trace_format(given: list[Any]) -> None:
    """Fields and types as "Trace Event Format" has them, by phase; slices of a track nest."""
    down = {"down": "killed", "now": given[-1]["engines"][0]["now"]}
    trace = json.loads(recorded([*given, down], "r.file({version: '1', models: ['m']})"))
    assert trace["displayTimeUnit"] in ("ms", "ns")
    named, slices = set(), defaultdict(list)
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            named.add((event["pid"], event.get("tid")))
            continue
        assert isinstance(event["ts"], int)
        assert event["ts"] > 0
        if event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())
        elif event["ph"] == "i":
            assert event["s"] in ("g", "p", "t")
        else:
            assert event["ph"] == "X"
            assert isinstance(event["args"], dict)
            begin = event["ts"]
            slices[event["pid"], event["tid"]].append((begin, -event["dur"], begin + event["dur"]))
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X", "C", "i"}
    assert set(slices) <= named
    for track in slices.values():
        open_ends: list[int] = []
        for begin, _, end in sorted(track):
            while open_ends and open_ends[-1] <= begin:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)
