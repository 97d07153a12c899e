"""A real server whose memory runs short, and one whose engine loses count of its blocks."""

from __future__ import annotations

import threading

import httpx
import pytest

from tests.chaos.workload import REQUESTS, TEXT
from tests.launcher.serving import Server, play
from tests.launcher.test_supervisor import until

pytestmark = pytest.mark.alone

FLAGS = ["--max-num-batched-tokens", "64"]


def faulty(faults: str) -> Server:
    return Server(*FLAGS, env={"GALLEY_FAULTS": faults, "GALLEY_DEV_MODE": "1"})


def test_memory_runs_short_and_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    """Requests wait meanwhile; their answers do not change."""
    # Memory is looked at four times a second: steps of a fast machine would be over before.
    server = faulty("*:step1+=sleep/0.01, 1:step40=short/0.8")
    shed = [a.seen for a in play(server, REQUESTS)]
    assert server.metric("vllm:num_preemptions_total") > 0
    # An engine at rest notices that memory is back, and tells.
    until(lambda: server.metric("galley:memory_short") == 0)
    until(lambda: server.metric("galley:kv_blocks_withheld") == 0)
    log = capfd.readouterr().out
    assert log.count("Memory runs short: 0 MiB are available") == 1
    assert log.count("Memory is back") == 1
    server.inspect()
    assert [a.seen for a in play(server, REQUESTS)] == shed
    assert server.metric("galley:engine_restarts_total") == 0
    server.close()


def test_blocks_come_back_while_streams_run() -> None:
    """Requests that had to wait because memory was short continue beside those that ran."""
    server = faulty("*:step1+=sleep/0.005, 1:step40=short/0.6")
    length = {"max_tokens": 250, "ignore_eos": True, "temperature": 0}
    # The prompts alone need more blocks than are left: something waits, however slow the machine.
    stories = [{"prompt": f"{i}. {TEXT[2000:3000]}", **length} for i in range(6)]
    shed: list[object] = []
    clients = threading.Thread(target=lambda: shed.extend(a.seen for a in play(server, stories)))
    clients.start()
    states: list[tuple[bool, int]] = []
    while clients.is_alive():
        withheld = server.metric("galley:kv_blocks_withheld") > 0
        states.append((withheld, int(server.metric("vllm:num_requests_running"))))
    short = [running for withheld, running in states if withheld]
    after = states[max(i for i, (withheld, _) in enumerate(states) if withheld) :]
    assert max(running for _, running in after) > short[-1] > 0
    assert server.metric("vllm:num_preemptions_total") > 0
    assert [a.seen for a in play(server, stories)] == shed
    server.inspect()
    server.close()


def test_an_idle_engine_with_a_violated_invariant_is_replaced() -> None:
    server = faulty("1:after50=leak")
    before = [a.seen for a in play(server, REQUESTS)]
    until(lambda: server.count("restarting it"))
    assert server.count("AssertionError: references differ from the tables' entries") > 0
    until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
    assert [a.seen for a in play(server, REQUESTS)] == before
    server.inspect()
    assert server.metric("galley:engine_restarts_total") == 1
    server.close()
