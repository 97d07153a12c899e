"""`galley serve` with the default model: the engine is killed and no client can tell."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from galley.config import EngineConfig, ModelConfig
from galley.launcher.main import fetch_once
from tests.launcher.test_supervisor import ROOT, children_of, is_alive, until

FLAGS = ["--host", "127.0.0.1", "--port", "0", "--max-model-len", "1024", "--max-num-seqs", "16"]
FLAGS += ["--kv-cache-memory-bytes", "256m", "--disable-uvicorn-access-log"]


class Server:
    """A real `galley serve`."""

    def __init__(self, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "galley", "serve", *FLAGS, *flags],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if match := re.search(r"serving at (http://\S+)", line):
                self.url = match[1]
                break
        else:
            raise AssertionError(f"it did not serve: {self.said}")
        # Somebody must read on, or a full pipe would stop the server.
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.said += self.process.stderr

    @property
    def children(self) -> dict[str, int]:
        return children_of(self.process.pid)

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed completion."""
        body = {"stream": True, "stream_options": {"include_usage": True}, **body}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60) as reply:
            assert reply.status_code == 200, reply.read()
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0
        self._reader.join(10)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    children = server.children
    server.close()
    assert len(children) == 2
    assert not any(is_alive(pid) for pid in children.values())


REQUESTS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "max_tokens": 120, "temperature": 0},
    {"prompt": "The sea is", "max_tokens": 120, "temperature": 1.0, "seed": 11},
    {"prompt": "One, two,", "max_tokens": 100, "temperature": 1.0, "seed": 3, "n": 2},
    {"prompt": "In a word,", "max_tokens": 100, "temperature": 0, "logprobs": 2},
    {"prompt": "A list of", "max_tokens": 120, "temperature": 0, "repetition_penalty": 1.3},
    {"prompt": "Because " * 200, "max_tokens": 60, "temperature": 0.7, "seed": 5},
    {"prompt": "Nobody", "max_tokens": 100, "temperature": 1.0, "seed": 7, "min_tokens": 90},
]


class Answer:
    """What a client has seen of one request."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.reasons: dict[int, Any] = {}
        self.logprobs: list[Any] = []
        self.usage: Any = None
        self.num_events = 0

    def take(self, event: dict[str, Any]) -> None:
        self.num_events += 1
        assert "error" not in event, event
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            i = choice["index"]
            self.texts[i] = self.texts.get(i, "") + choice["text"]
            self.reasons[i] = choice["finish_reason"] or self.reasons.get(i)
            if choice.get("logprobs"):
                self.logprobs += choice["logprobs"]["token_logprobs"]

    @property
    def seen(self) -> tuple[Any, ...]:
        usage = self.usage["prompt_tokens"], self.usage["completion_tokens"]
        return self.texts, self.reasons, self.logprobs, usage


def play(server: Server, kills: list[int]) -> list[Answer]:
    """All requests at once; the engine is killed when so many events have come."""
    answers = [Answer() for _ in REQUESTS]

    def follow(body: dict[str, Any], answer: Answer) -> None:
        for event in server.stream({"ignore_eos": True, **body}):
            answer.take(event)

    threads = [
        threading.Thread(target=follow, args=pair) for pair in zip(REQUESTS, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for kill in kills:
        until(lambda at=kill: sum(a.num_events for a in answers) >= at, 60)
        os.kill(until(lambda: server.children.get("Galley::EngineCore_0")), signal.SIGKILL)
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive()
    return answers


def test_killing_the_engine_changes_no_answer(server: Server) -> None:
    undisturbed = [a.seen for a in play(server, [])]
    assert [a.seen for a in play(server, [10, 150])] == undisturbed
    assert sum("was ended by SIGKILL: starting it anew" in line for line in server.said) == 2


def test_health_tells_when_there_is_no_engine(server: Server) -> None:
    def status() -> int:
        return httpx.get(f"{server.url}/health").status_code

    until(lambda: status() == 200)
    os.kill(server.children["Galley::EngineCore_0"], signal.SIGKILL)
    until(lambda: status() == 503)
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
def test_a_start_that_fails_says_why_once(flags: list[str], code: int, words: str) -> None:
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
        "heavy = {'numpy', 'fastapi', 'tokenizers', 'zmq', 'asyncio', 'jinja2', 'torch'}\n"
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


def test_no_socket_is_left_in_the_temporary_folder(server: Server) -> None:
    name = f"galley-{os.getuid()}-{server.process.pid}-*"
    (folder,) = Path(tempfile.gettempdir()).glob(name)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.glob("engine-0-*"))
