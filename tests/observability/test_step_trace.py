"""The ring of step records."""

from __future__ import annotations

import numpy as np

from galley.observability.step_trace import STEP_DTYPE, StepRows, StepTrace


def record(trace: StepTrace, step: int) -> None:
    tokens = np.array([step % 7], np.int32)
    rows = StepRows(np.array([step], np.int64), tokens, tokens)
    trace.record((step, *range(len(STEP_DTYPE.names) - 1)), rows)


def test_the_ring_keeps_the_last_steps() -> None:
    trace = StepTrace(capacity=8)
    assert len(trace.since(0)) == 0
    for step in range(1, 21):
        record(trace, step)
    assert trace.last == 20
    assert trace.since(0)["step"].tolist() == list(range(13, 21))
    assert trace.since(17)["step"].tolist() == [18, 19, 20]
    assert len(trace.since(20)) == 0


def test_rows_of_a_step_that_has_left_the_ring_are_gone() -> None:
    trace = StepTrace(capacity=4)
    for step in range(1, 7):
        record(trace, step)
    assert trace.rows_of(2) is None
    assert trace.rows_of(7) is None
    assert trace.rows_of(5).handles.tolist() == [5]


def test_fields_are_stored_in_order() -> None:
    trace = StepTrace()
    record(trace, 3)
    (found,) = trace.since(0)
    assert found["begin"] == 0.0
    assert found["ended"] == len(STEP_DTYPE.names) - 2
