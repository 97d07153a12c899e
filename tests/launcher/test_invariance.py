"""A running server reports batch invariance, and keeps counters over deaths."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from galley.cli.main import main
from tests.launcher.serving import API_SERVER, Server, play
from tests.launcher.test_supervisor import until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(env={"VLLM_BATCH_INVARIANT": "1"})
    yield server
    server.close()


def test_the_default_backend_promises_it(server: Server) -> None:
    until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
    assert httpx.get(f"{server.url}/version").json()["batch_invariant"] is True
    assert server.metric("galley:batch_invariant") == 1


def test_requiring_invariance_of_a_backend_without_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert main(["serve", "--port", "0", "--backend", "reference"]) == 2
    assert "cannot promise" in capsys.readouterr().err


def test_counters_outlive_one_of_several_api_servers() -> None:
    server = Server("--api-server-count", "2")
    body = {"prompt": "Once", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    play(server, [body] * 12)
    server.kill_engine(signal.SIGKILL)
    until(lambda: server.metric("galley:engine_restarts_total") == 1)
    names = ("vllm:generation_tokens_total", "vllm:request_success_total")
    names += ("vllm:iteration_tokens_total_count", "galley:engine_restarts_total")
    before = {name: server.metric(name) for name in names}
    assert before["vllm:generation_tokens_total"] == 12 * 8
    os.kill(server.children[API_SERVER], signal.SIGKILL)
    until(lambda: server.count("API server 0 was ended by SIGKILL: restarting it"))
    assert {name: server.metric(name) for name in names} == before
    until(lambda: len(server.children) == 3)
    play(server, [body] * 12)
    after = {name: server.metric(name) for name in names}
    assert after["vllm:generation_tokens_total"] == 2 * 12 * 8
    assert after["galley:engine_restarts_total"] == 1
    server.close()


def test_the_engine_is_the_first_choice_of_the_oom_killer(server: Server) -> None:
    """For want of memory: of all, it is what can be replaced."""
    scores = {
        name: int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for name, pid in server.children.items()
    }
    launcher = int(Path(f"/proc/{server.process.pid}/oom_score_adj").read_text())
    assert scores.pop("Galley::EngineCore_0") > launcher
    assert set(scores.values()) == {launcher}
