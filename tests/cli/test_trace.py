"""`galley trace` on traces that the engine wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from galley.cli.main import main
from galley.observability.perfetto import Profile
from galley.observability.step_trace import STEP_DTYPE, StepRows, StepTrace
from galley.observability.trace_summary import read_trace, summarize

#: begin, submit, sampled, end in ms; rows, tokens, decodes; running, waiting, free blocks.
STEPS = (
    (0, 1, 9, 10, 1, 100, 0, 1, 3, 90),
    (12, 13, 21, 22, 3, 50, 2, 3, 1, 80),
    (22, 23, 25, 26, 3, 3, 3, 3, 0, 70),
    (26, 27, 29, 30, 3, 3, 3, 2, 0, 85),
)
NONE = np.zeros(0, np.int32)
ROWS = StepRows(np.zeros(0, np.int64), NONE, NONE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    trace = StepTrace()
    profile = Profile(trace, str(tmp_path))
    for number, row in enumerate(STEPS, 1):
        names = ("num_rows", "num_tokens", "num_decodes", "num_running", "num_waiting")
        fields = dict(zip((*names, "blocks_free"), row[4:], strict=True))
        fields |= {"step": number, "started": 1, "ended": int(number == 4)}
        times = dict(zip(("begin", "submit", "sampled", "end"), row[:4], strict=True))
        fields |= {name: milliseconds / 1e3 for name, milliseconds in times.items()}
        trace.record(tuple(fields.get(name, 0) for name in STEP_DTYPE.names or ()), ROWS)
    return Path(profile.write())


def test_where_the_time_went(path: Path) -> None:
    found = summarize(read_trace(path), slowest=2)
    assert found.seconds == pytest.approx(0.030)
    assert (found.steps, found.tokens, found.started, found.ended) == (4, 156, 4, 1)
    assert (found.running, found.waiting, found.free_blocks) == (3, 3, 70)
    totals = {name: share.total for name, share in found.parts.items()}
    assert totals == pytest.approx({"schedule": 4, "execute": 20, "commit": 4, "between": 2})
    assert sum(share.share for share in found.parts.values()) == pytest.approx(1)
    counts = {name: (kind.time.count, kind.tokens) for name, kind in found.kinds.items()}
    assert counts == {
        "prompts alone": (1, 100),
        "decodes with prompts": (1, 50),
        "decodes alone": (2, 6),
    }
    assert found.kinds["prompts alone"].rate == pytest.approx(10_000)
    assert [(step, rows, tokens) for step, _, rows, tokens in found.slowest] == [
        (1, 1, 100),
        (2, 3, 50),
    ]


def test_text_and_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(path)]) == 0
    text = capsys.readouterr().out
    assert "4 steps in 0.030 s: 156 tokens computed (5,200 a second)" in text
    assert "At most 3 running and 3 waiting; at least 70 free blocks." in text
    for name in ("schedule", "between", "decodes with prompts", "Slowest steps"):
        assert name in text
    assert main(["trace", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["execute"]["total"] == pytest.approx(20)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("{}", "is not a Chrome trace"),
        ('{"traceEvents": [{"ph": "X", "name": "other"}]}', "has no steps"),
        ('[{"ph": "X", "name": "step 1"}]', "has no steps"),
    ],
)
def test_what_is_no_trace(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(text)
    assert main(["trace", str(tmp_path / "x.json")]) == 2
    assert says in capsys.readouterr().err
    assert main(["trace", str(tmp_path / "absent.json")]) == 2
    assert main(["trace"]) == 2
    assert main(["trace", "x", "--slowest", "-1"]) == 2
