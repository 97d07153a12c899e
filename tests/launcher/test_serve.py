"""`galley serve` with the default model: the engine is killed and no client can tell."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from galley.config import EngineConfig, ModelConfig
from galley.launcher.main import fetch_once
from galley.launcher.supervisor import say
from tests.launcher.serving import API_SERVER, ENGINE, Server, play
from tests.launcher.test_supervisor import ROOT, until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    assert set(server.children) == {ENGINE, API_SERVER}
    yield server
    server.close()


REQUESTS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "max_tokens": 120, "temperature": 0},
    {"prompt": "The sea is", "max_tokens": 120, "temperature": 1.0, "seed": 11},
    {"prompt": "One, two,", "max_tokens": 100, "temperature": 1.0, "seed": 3, "n": 2},
    {"prompt": "In a word,", "max_tokens": 100, "temperature": 0, "logprobs": 2},
    {"prompt": "A list of", "max_tokens": 120, "temperature": 0, "repetition_penalty": 1.3},
    {"prompt": "Because " * 200, "max_tokens": 60, "temperature": 0.7, "seed": 5},
    {"prompt": "Nobody", "max_tokens": 100, "temperature": 1.0, "seed": 7, "min_tokens": 90},
]
REQUESTS = [{"ignore_eos": True, **request} for request in REQUESTS]


def test_killing_the_engine_changes_no_answer(server: Server) -> None:
    def kill() -> None:
        server.kill_engine(signal.SIGKILL)

    undisturbed = [a.seen for a in play(server, REQUESTS)]
    assert [a.seen for a in play(server, REQUESTS, [10, 150], kill)] == undisturbed
    assert server.count("was ended by SIGKILL: restarting it") == 2
    server.inspect()


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "red"), (signal.SIGSEGV, "green")])
def test_what_was_computed_outlives_an_engine_that_was_killed_but_not_one_that_crashed(
    server: Server, number: signal.Signals, words: str
) -> None:
    """The memory of an engine that crashed is not trusted; that of one killed from outside is."""
    body = {"prompt": f"{words} and " * 300, "max_tokens": 80, "temperature": 0}
    undisturbed = play(server, [{"ignore_eos": True, **body}])[0].seen
    server.inspect()  # which forgets all that is cached
    before = server.metric("vllm:prefix_cache_hits_total")
    answers = play(server, [{"ignore_eos": True, **body}], [20], lambda: server.kill_engine(number))
    assert answers[0].seen == undisturbed
    hits = server.metric("vllm:prefix_cache_hits_total") - before
    assert (hits >= 600) == (number == signal.SIGKILL), hits


def test_the_log_says_that_it_is_up(server: Server) -> None:
    assert any(line.endswith("[launcher] Application startup complete.\n") for line in server.log)
    assert not any("Started server process" in line for line in server.log)  # it broke the bar


def test_the_launcher_keeps_to_the_log_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    say("quiet")
    say("loud", "ERROR")
    say("waited for", always=True)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("[launcher] ")[2] for line in said] == ["loud", "waited for"]


def test_text_stays_in_the_api_server(server: Server) -> None:
    """The engine's process has not even loaded a tokenizer."""
    maps = {
        name: Path(f"/proc/{server.children[name]}/maps").read_text()
        for name in (ENGINE, API_SERVER)
    }
    assert "tokenizers" in maps[API_SERVER]
    assert "tokenizers" not in maps[ENGINE]


def test_health_tells_when_there_is_no_engine(server: Server) -> None:
    def status() -> int:
        return httpx.get(f"{server.url}/health").status_code

    until(lambda: status() == 200)
    old = server.children[ENGINE]
    server.kill_engine(signal.SIGKILL)
    # The next one is stopped at its start: it might be there before anybody asks.
    new = until(lambda: (pid := server.children.get(ENGINE, old)) != old and pid)
    os.kill(new, signal.SIGSTOP)
    until(lambda: status() == 503)
    os.kill(new, signal.SIGCONT)
    until(lambda: status() == 200)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["/no/such/model.gguf"], 2, "/no/such/model.gguf"),
        (["--max-model-len", "10m"], 2, "--max-model-len"),
        (["--kv-cache-memory-bytes", "1m"], 2, "--kv-cache-memory-bytes"),
        (["--no-such-flag"], 2, "--no-such-flag"),
    ],
)
def test_a_failed_start_gives_its_reason_once(flags: list[str], code: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "galley", "serve", "--port", "0", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    lines = [line for line in done.stderr.splitlines() if words in line]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_line(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "galley", "serve", "--host", "127.0.0.1", "--port", port],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Address already in use" in done.stderr


def test_the_launcher_imports_little() -> None:
    program = (
        "import sys, galley.launcher.main\n"
        "heavy = {'numpy', 'starlette', 'tokenizers', 'asyncio', 'jinja2', 'torch'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_only_a_hub_name_is_fetched_and_by_one_child_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for local in ("", str(tmp_path)):
        fetch_once(EngineConfig(model=ModelConfig(model=local)), str(tmp_path))
        assert not list(tmp_path.iterdir())
    fetched: list[str] = []

    def resolve_source(model: ModelConfig, load: object) -> None:
        with open(tmp_path / "download.lock", "rb") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fetched.append(model.model)

    monkeypatch.setattr("galley.loader.resolve_source", resolve_source)
    fetch_once(EngineConfig(model=ModelConfig(model="org/name")), str(tmp_path))
    assert fetched == ["org/name"]


def test_the_folder_of_sockets_is_private(server: Server) -> None:
    assert server.folder.stat().st_mode & 0o777 == 0o700
    assert list(server.folder.glob("engine-0-*"))
