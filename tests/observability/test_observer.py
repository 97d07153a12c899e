"""Observers in a row and in bunches."""

from __future__ import annotations

from array import array
from typing import Any

from galley.messages import Outputs, Started
from galley.observability.observer import BATCH, BatchingObserver, Observers
from galley.request import FinishReason


class Notes:
    """Records its notifications."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def ready(self, message: Any) -> None:
        self.heard.append("ready")

    def added(self, request: Any, index: int, n: int) -> None:
        self.heard.append("added")

    def outputs(self, message: Any) -> None:
        self.heard.append(message.step)

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        self.heard.append("finished")


def step(number: int, *handles: int, **parts: Any) -> Outputs:
    return Outputs(number, 1, 0, float(number), array("q", handles).tobytes(), **parts)


def test_all_observers_get_all_events() -> None:
    first, second = Notes(), Notes()
    both: Any = Observers(first, second)
    both.ready(None)
    both.added(None, 0, 1)
    both.outputs(step(1, 7))
    both.finished(7, FinishReason.STOP, 1)
    assert first.heard == second.heard == ["ready", "added", 1, "finished"]


def test_steps_of_the_same_requests_are_passed_on_in_batches() -> None:
    notes = Notes()
    bunched = BatchingObserver(notes)
    for number in range(1 + 2 * BATCH):
        bunched.outputs(step(number, 7, 8))
        told = 1 + (len(notes.heard) - 1) // BATCH * BATCH
        assert notes.heard == list(range(told))
        assert number - told < BATCH
    bunched.outputs(step(1000, 7, 8))
    bunched.catch_up()
    assert notes.heard == [*range(1 + 2 * BATCH), 1000]
    bunched.catch_up()
    assert notes.heard[-2:] == [2 * BATCH, 1000]


def test_anything_else_is_passed_on_at_once_and_in_order() -> None:
    notes = Notes()
    bunched: Any = BatchingObserver(notes)
    bunched.outputs(step(1, 7))
    bunched.outputs(step(2, 7))
    assert notes.heard == [1]
    bunched.outputs(step(3, 7, 8))
    assert notes.heard == [1, 2, 3], "another request"
    bunched.outputs(step(4, 7, 8))
    bunched.outputs(step(5, 7, 8, counts=array("i", [2, 1]).tobytes()))
    assert notes.heard == [1, 2, 3, 4, 5], "more than a token each"
    bunched.outputs(step(6, 7, 8))
    bunched.outputs(step(7, 7, 8, started=[Started(9, 0, 1.0, 2.0)]))
    assert notes.heard == [1, 2, 3, 4, 5, 6, 7], "an admission"
    for act, word in (
        (lambda: bunched.finished(7, FinishReason.STOP, 1), "finished"),
        (lambda: bunched.added(None, 0, 1), "added"),
        (lambda: bunched.ready(None), "ready"),
    ):
        bunched.outputs(step(8, 7, 8))
        assert notes.heard[-1] != 8
        act()
        assert notes.heard[-2:] == [8, word]
    bunched.outputs(step(9))
    bunched.outputs(step(10))
    assert notes.heard[-2:] == [9, 10], "updates without tokens"
