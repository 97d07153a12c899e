"""A real `galley serve` under test, what its clients see, and a look into its engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from galley.loader.source import DEFAULT_NAME
from galley.messages import Call, FromEngine, Ready, Reply
from tests.frontend.engine_thread import BlockingClient
from tests.launcher.test_supervisor import LIMIT, ROOT, children_of, ended_after, is_alive, until
from tests.small_model import small_model

FLAGS = ["--host", "127.0.0.1", "--port", "0", "--max-model-len", "1024", "--max-num-seqs", "16"]
FLAGS += ["--kv-cache-memory-bytes", "256m", "--disable-uvicorn-access-log"]
ENGINE, API_SERVER = "Galley::EngineCore_0", "Galley::APIServer_0"


class Server:
    """A server process, from its first word until its end.

    Args:
        flags: after `FLAGS`, so that they win.
        model: its arguments that name a model; None = the small model, named as the built-in one.
        env: added to the environment.
        wrap: a command in front of it (`prlimit …`).

    Attributes:
        log: lines on stderr so far.
        seen: pids of all its processes so far.
    """

    def __init__(
        self,
        *flags: str,
        model: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        wrap: Sequence[str] = (),
    ) -> None:
        if model is None:
            model = [str(small_model()), "--served-model-name", DEFAULT_NAME]
        # A folder of its own: another launcher on this machine would clean up what this one leaves.
        self.temporary = tempfile.TemporaryDirectory(prefix="serve-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [*wrap, sys.executable, "-m", "galley", "serve", *model, *FLAGS, *flags],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": self.temporary.name, **(env or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self.seen: set[int] = set()
        assert self.process.stderr is not None
        with ended_after(LIMIT, self.process):
            for line in self.process.stderr:
                self.log.append(line)
                if match := re.search(r"serving at (http://\S+)", line):
                    self.url = match[1]
                    break
            else:
                raise AssertionError(f"it did not serve: {self.log}")
        # Somebody must read on, or a full pipe would stop the server.
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        assert self.children

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.log += self.process.stderr

    @property
    def children(self) -> dict[str, int]:
        found = children_of(self.process.pid)
        self.seen |= set(found.values())
        return found

    @property
    def folder(self) -> Path:
        """Its private folder."""
        name = f"galley-{os.getuid()}-{self.process.pid}-*"
        (folder,) = Path(self.temporary.name).glob(name)
        return folder

    def count(self, words: str) -> int:
        """Lines on stderr with these words."""
        return sum(words in line for line in self.log)

    def kill_engine(self, number: int) -> None:
        os.kill(until(lambda: self.children.get(ENGINE)), number)

    def stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed completion."""
        body = {"stream": True, "stream_options": {"include_usage": True}, **body}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=180) as reply:
            assert reply.status_code == 200, reply.read()
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])

    def ask(self, body: Mapping[str, Any]) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=180)

    def metric(self, name: str) -> float:
        """The sum of a metric's series."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        values = [float(x.rpartition(" ")[2]) for x in lines if re.match(name + r"[{ ]", x)]
        assert values, name
        return sum(values)

    def inspect(self) -> None:
        """Prove that the engine's accounting is right and that no block is in use."""

        def newest() -> Path | None:
            sockets = [p for p in self.folder.glob("engine-0-*") if ENGINE in self.children]
            return max(sockets, key=lambda p: int(p.name.rpartition("-")[2]), default=None)

        def look() -> list[tuple[Any, str | None]]:
            methods = ["check_integrity", "reset_prefix_cache"]
            for _ in range(99):
                try:
                    return call_engine(str(until(newest)), methods)
                # It has died since, or does not listen yet: the next one's state counts.
                except (FileNotFoundError, ConnectionRefusedError):
                    time.sleep(0.1)
            raise AssertionError("no engine listens")

        results = look()
        if "MemoryError" in str(results):
            # An engine that starves may notice it here first: the next one's state counts.
            before = newest()
            self.kill_engine(signal.SIGKILL)
            until(lambda: newest() not in (None, before))
            results = look()
        for _ in range(100):
            # What a stop string has ended is still to be aborted where the front end is slow.
            if results != [(None, None), (False, None)]:
                break
            time.sleep(0.1)
            results = look()
        assert results == [(None, None), (True, None)], results

    def close(self) -> None:
        """End it; no process is left and no file in its temporary folder or, named by a process of
        its own, in /dev/shm."""
        folder = self.folder
        assert self.children
        self.process.terminate()
        assert self.process.wait(120) == 0
        self._reader.join(60)
        until(lambda: not any(is_alive(pid) for pid in self.seen))
        assert not folder.exists()
        shared = Path("/dev/shm")
        names = [path.name for path in shared.iterdir()] if shared.is_dir() else []
        assert not [n for n in names for pid in self.seen if re.search(rf"\b{pid}\b", n)]


def call_engine(socket_path: str, methods: Sequence[str]) -> list[tuple[Any, str | None]]:
    """Call methods of an engine over its socket, as a client of its own: (result, error) each."""
    for _ in range(9):
        try:
            return _call_engine(socket_path, methods)
        except EOFError:
            pass  # a fault has closed this connection
    raise AssertionError("the engine closes every connection")


def _call_engine(socket_path: str, methods: Sequence[str]) -> list[tuple[Any, str | None]]:
    client = BlockingClient(f"ipc://{socket_path}", 9999)
    decode = msgspec.msgpack.Decoder(FromEngine).decode
    assert isinstance(decode(client.receive()), Ready)
    found = []
    for i, method in enumerate(methods):
        client.send(msgspec.msgpack.encode(Call(i, method)))
        reply = decode(client.receive())
        assert isinstance(reply, Reply)
        found.append((reply.result, reply.error))
    client.close()
    return found


class Answer:
    """The events of one request, as its client received them."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.reasons: dict[int, Any] = {}
        self.stop_reasons: dict[int, Any] = {}
        self.logprobs: dict[int, list[Any]] = {}
        self.prompt_logprobs: Any = None
        self.usage: Any = None
        self.num_events = 0

    def take(self, event: dict[str, Any]) -> None:
        self.num_events += 1
        assert "error" not in event, event
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            i = choice["index"]
            assert self.reasons.get(i) is None, "something came after the end"
            self.texts[i] = self.texts.get(i, "") + choice["text"]
            self.reasons[i] = choice["finish_reason"]
            self.stop_reasons[i] = choice.get("stop_reason")
            if choice.get("logprobs"):
                entry = choice["logprobs"]
                columns = entry["tokens"], entry["token_logprobs"], entry["top_logprobs"]
                pairs = zip(*columns, strict=True)
                self.logprobs.setdefault(i, []).extend(pairs)
            self.prompt_logprobs = choice.get("prompt_logprobs") or self.prompt_logprobs

    @property
    def seen(self) -> tuple[Any, ...]:
        """All that must be the same whatever happened on the way."""
        usage = self.usage["prompt_tokens"], self.usage["completion_tokens"]
        ends = self.reasons, self.stop_reasons
        return self.texts, ends, self.logprobs, self.prompt_logprobs, usage


def play(
    server: Server,
    requests: Sequence[Mapping[str, Any]],
    kills: Sequence[int] = (),
    kill: Callable[[], None] | None = None,
) -> list[Answer]:
    """All requests at once; `kill` is called each time that so many events have come."""
    answers = [Answer() for _ in requests]
    problems: list[BaseException] = []

    def follow(body: Mapping[str, Any], answer: Answer) -> None:
        try:
            if body.get("stream", True):
                for event in server.stream(body):
                    answer.take(event)
            else:
                reply = server.ask(body)
                assert reply.status_code == 200, reply.text
                answer.take(reply.json())
        except BaseException as e:
            problems.append(e)

    threads = [
        threading.Thread(target=follow, args=pair) for pair in zip(requests, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for at in kills:
        until(lambda at=at: problems or sum(a.num_events for a in answers) >= at)
        if kill is not None:
            kill()
    for thread in threads:
        thread.join(200)
        assert not thread.is_alive(), "a request has no end"
    if problems:
        raise problems[0]
    return answers
