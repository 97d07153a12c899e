"""A real server where the machine or its clients are unkind: each has a sane outcome."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from galley.launcher.sockets import MAX_OPEN_FILES, allow_many_connections
from tests.launcher.serving import API_SERVER, ENGINE, Server, play
from tests.launcher.test_supervisor import ROOT, until
from tests.small_model import small_model

pytestmark = pytest.mark.alone

STORY = {"prompt": "Once upon a time", "temperature": 0, "ignore_eos": True, "max_tokens": 400}
SHORT = {**STORY, "max_tokens": 8}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def story(server: Server) -> tuple[Any, ...]:
    return play(server, [STORY])[0].seen


def limited(number: int) -> list[str]:
    """A command that runs what follows with so many file descriptors."""
    program = (
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({number}, {number}))\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", program]


def connect(server: Server) -> socket.socket:
    host, _, port = server.url.rpartition("/")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=120)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_without_file_descriptors_running_requests_continue_and_others_wait(
    story: tuple[Any, ...],
) -> None:
    """Even over the death of an engine, for whose successor a new socket is needed."""
    server = Server(wrap=limited(64))
    idle: list[socket.socket] = []

    def crowd() -> None:
        idle.extend(connect(server) for _ in range(100))
        until(lambda: descriptors(server.children[API_SERVER]) >= 60)
        server.kill_engine(signal.SIGKILL)

    assert play(server, [STORY, STORY], [20], crowd)[0].seen == story
    for connection in idle:
        connection.close()
    assert play(server, [SHORT])[0].reasons == {0: "length"}
    server.inspect()
    server.close()


def test_two_thousand_idle_connections_affect_no_request(
    server: Server, story: tuple[Any, ...]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 2300, "this test needs that many file descriptors"
    if soft < 2300:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as idle:
        for _ in range(2000):
            idle.enter_context(connect(server))
        assert play(server, [STORY])[0].seen == story
        assert httpx.get(f"{server.url}/health").status_code == 200
    until(lambda: descriptors(server.children[API_SERVER]) < 100)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        allow_many_connections()
        raised, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised == (
            MAX_OPEN_FILES
            if before[1] == resource.RLIM_INFINITY
            else min(before[1], MAX_OPEN_FILES)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def post(body: bytes) -> bytes:
    """``body`` as a whole request, for a client that is slow with it."""
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body


def test_clients_that_send_byte_by_byte_delay_no_other(
    server: Server, story: tuple[Any, ...]
) -> None:
    """Each of them gets its answer in the end."""
    body = json.dumps(SHORT).encode()
    request = post(body)
    slow = [connect(server) for _ in range(30)]
    for at in range(len(request) - 1):
        for connection in slow:
            connection.sendall(request[at : at + 1])
        if at % 60 == 0:
            assert play(server, [SHORT])[0].reasons == {0: "length"}
    assert play(server, [STORY])[0].seen == story
    for connection in slow:
        connection.sendall(request[-1:])
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        text = json.loads(answer.read())["choices"][0]["text"]
        assert story[0][0].startswith(text)
        connection.close()


def test_a_client_that_does_not_read_costs_the_others_nothing(
    server: Server, story: tuple[Any, ...]
) -> None:
    body = json.dumps({**STORY, "max_tokens": 200, "n": 2, "logprobs": 5, "stream": True}).encode()
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, _, port = server.url.rpartition("/")[2].partition(":")
    lazy.connect((host, int(port)))
    lazy.sendall(post(body))
    assert [a.seen for a in play(server, [STORY] * 3)] == [story] * 3
    # It is computed to its end all the same, and what it gets late is whole.
    until(lambda: server.metric("vllm:num_requests_running") == 0, 300)
    lazy.settimeout(120)
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        received += lazy.recv(1 << 20)
    assert received.count(b'"finish_reason":"length"') == 2
    assert len(received) > 10 * 4096, "more than any buffer of the client's"
    assert b"data: [DONE]" in received
    lazy.close()


def test_a_server_that_dies_loses_its_own_connections_and_nothing_else(server: Server) -> None:
    broken: list[BaseException] = []
    try:
        play(
            server,
            [STORY] * 3,
            [20],
            lambda: os.kill(server.children[API_SERVER], signal.SIGKILL),
        )
    except httpx.HTTPError as e:
        broken.append(e)
    assert broken
    until(lambda: server.children.get(API_SERVER) and _answers(server))
    # No block is left in use (tests/launcher/test_supervisor.py: they are freed at once).
    server.inspect()
    assert play(server, [SHORT])[0].reasons == {0: "length"}


def test_both_die_at_once(server: Server, story: tuple[Any, ...]) -> None:
    for name in (API_SERVER, ENGINE):
        os.kill(server.children[name], signal.SIGKILL)
    until(lambda: len(server.children) == 2 and _answers(server))
    assert play(server, [STORY])[0].seen == story
    server.inspect()


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_a_read_only_model_and_a_cache_that_cannot_be_written(
    tmp_path: Path, story: tuple[Any, ...]
) -> None:
    """Nothing is written beside the model; without a cache the server runs uncached."""
    folder = tmp_path / "model"
    folder.mkdir()
    model = Path(shutil.copy(small_model(), folder))
    model.chmod(0o444)
    folder.chmod(0o555)
    before = folder.stat().st_mtime_ns, model.stat().st_mtime_ns
    # A file where the cache's folder would be: not even root can make one there.
    (tmp_path / "cache").write_text("")
    server = Server(model=[str(model)], env={"GALLEY_CACHE_DIR": str(tmp_path / "cache")})
    assert play(server, [STORY])[0].texts == story[0]
    server.kill_engine(signal.SIGKILL)
    assert play(server, [STORY])[0].texts == story[0]
    server.close()
    assert [p.name for p in folder.iterdir()] == [model.name]
    assert (folder.stat().st_mtime_ns, model.stat().st_mtime_ns) == before
    folder.chmod(0o755)


def test_a_full_disk_leaves_no_incomplete_cache(tmp_path: Path) -> None:
    """Files may not grow beyond a megabyte, as on a disk with no more room than that."""
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from galley import LLM, SamplingParams\n"
        "llm = LLM(kv_cache_memory_bytes=64 << 20, max_model_len=256)\n"
        "params = SamplingParams(max_tokens=4, temperature=0)\n"
        "print(len(llm.generate('Hello', params, use_tqdm=False)[0].outputs[0].token_ids))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "GALLEY_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "4\n", done.stderr
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
