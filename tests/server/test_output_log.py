"""--enable-log-outputs."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from galley.request import FinishReason
from galley.server.output_log import OutputLog


class Sequence:
    def __init__(self, handle: int, pieces: list[str]) -> None:
        self.request: Any = type("R", (), {"handle": handle, "request_id": f"r{handle}"})
        self.pieces = pieces


def test_an_answer_is_logged_once_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = OutputLog(longest=4)
    state: Any = type("S", (), {"sequences": [Sequence(1, ["ab", "cde"]), Sequence(2, ["x"])]})
    log.follow(state)
    log.finished(1, FinishReason.STOP, 2)
    log.finished(1, FinishReason.STOP, 2)
    log.finished(3, FinishReason.STOP, 2)
    assert [r.getMessage() for r in caplog.records] == [
        "Generated response r1: output: 'abcd', tokens: 2, finish_reason: stop"
    ]
    assert list(log._followed) == [2]
    log.finished(2, FinishReason.ABORT, 1)
    assert not log._followed
