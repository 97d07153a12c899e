"""Hostile constraints at a real server: a 400 for each, while another request streams on.

make check-structured
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks import tiny
from benchmarks.served import Server, serve
from tests.structured.test_hostile import EXPENSIVE, HOSTILE

#: Seconds in which a hostile constraint is refused.
LIMIT = 2.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(*tiny.flags(tmp_path_factory.mktemp("tiny"), 2048)) as server:
        yield server


class _Stream(threading.Thread):
    """One streamed answer after another until `done`; notes when each piece arrives."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.done = threading.Event()
        self.times: list[float] = []
        self._url = url

    def run(self) -> None:
        body = {"model": tiny.NAME, "prompt": "a", "max_tokens": 2000, "stream": True}
        body["ignore_eos"] = True
        while not self.done.is_set():
            with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=60) as got:
                for line in got.iter_lines():
                    if line.startswith("data:"):
                        self.times.append(time.monotonic())
                    if self.done.is_set():
                        return


def test_refusals_in_time_and_streams_go_on(server: Server) -> None:
    before = os.getloadavg()[0]
    stream = _Stream(server.url)
    stream.start()
    slowest = ("", 0.0)
    try:
        ask(server, {"regex": "a"})  # Starts the child process.
        for name, given in {**HOSTILE, **EXPENSIVE}.items():
            start = time.monotonic()
            answer = ask(server, given)
            slowest = max(slowest, (name, time.monotonic() - start), key=lambda pair: pair[1])
            assert answer.status_code == 400, (name, answer.text[:300])
            print(f"{name:24} {time.monotonic() - start:5.2f} s  {answer.text[:140]}")
    finally:
        stream.done.set()
        stream.join()
    gaps = [b - a for a, b in zip(stream.times, stream.times[1:], strict=False)]
    print(f"slowest: {slowest}; longest gap of the stream: {max(gaps):.3f} s of {len(gaps)}")
    # The limit of the child process is CPU time: on a machine busy with other work it lasts longer,
    # and so do steps.
    if before < (os.cpu_count() or 1):
        assert max(gaps) < LIMIT / 2
        assert slowest[1] < LIMIT


def ask(server: Server, given: dict[str, Any]) -> httpx.Response:
    body = {"model": tiny.NAME, "prompt": "a", "max_tokens": 1, "structured_outputs": given}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
