"""Client disconnects: their requests are aborted within a step."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tests.server.served import MODEL, Served

HI = [{"role": "user", "content": "hi"}]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def send(served: Served, path: str, body: dict[str, Any]) -> socket.socket:
    content = msgspec.json.encode({"model": MODEL, **body})
    sock = socket.socket()
    sock.settimeout(60)
    sock.connect(("127.0.0.1", served.port))
    sock.sendall(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (path.encode(), len(content), content)
    )
    return sock


@pytest.fixture
def endless(served: Served) -> Iterator[Served]:
    """Answers that would take a minute."""
    served.engine.script = lambda request: [5] * 200
    served.engine.pause = 0.3
    yield served
    served.engine.pause = 0.0


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("path", "body", "sequences"),
    [
        ("/v1/chat/completions", {"messages": HI, "n": 2}, 2),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 100}, 1),
        ("/v1/completions", {"prompt": ["hi", "ho"], "max_tokens": 100}, 2),
    ],
    ids=["chat", "completion", "batch"],
)
def test_a_disconnect_aborts(
    endless: Served, path: str, body: Any, sequences: int, stream: bool
) -> None:
    engine = endless.engine
    sock = send(endless, path, {**body, "stream": stream})
    wait_for(lambda: len(engine.seen) == sequences)
    if stream:
        assert sock.recv(10)
    engine.hold = True
    sock.close()
    wait_for(lambda: engine.num_unfinished == 0)  # without any further step
    assert engine.aborted


def test_a_disconnect_before_the_body_is_complete(served: Served) -> None:
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    sock.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b'Content-Length: 1000\r\n\r\n{"prompt": "a'
    )
    sock.close()
    assert served.post("/v1/completions", {"prompt": "hi"}).status_code == 200
    assert len(served.engine.seen) == 1


def test_two_hundred_that_gave_up_do_not_delay_the_next(served: Served) -> None:
    """http_behaviours 8."""
    engine = served.engine
    engine.script = lambda request: [5] * 200
    engine.hold = True
    body = {"prompt": "hi", "max_tokens": 200, "stream": True}
    socks = [send(served, "/v1/completions", body) for _ in range(200)]
    wait_for(lambda: len(engine.seen) == 200)
    for sock in socks:
        sock.close()
    wait_for(lambda: engine.num_unfinished == 0)
    engine.hold = False
    assert served.post("/v1/completions", {"prompt": "hi", "max_tokens": 2}).status_code == 200
    assert len(engine.aborted) == 200


def test_a_client_that_leaves_is_no_success(endless: Served) -> None:
    """Its status is 499 in the HTTP metrics."""
    handler = 'handler="/v1/completions",method="POST"'

    def count(status: str) -> float:
        try:
            return endless.metric(f'http_requests_total{{{handler},status="{status}"}}')
        except KeyError:
            return 0.0

    before = count("2xx"), count("4xx")
    sock = send(endless, "/v1/completions", {"prompt": "hi", "max_tokens": 100})
    wait_for(lambda: endless.engine.num_unfinished == 1)
    sock.close()
    wait_for(lambda: count("4xx") == before[1] + 1)
    assert count("2xx") == before[0]


def test_requests_on_one_connection_follow_each_other(served: Served) -> None:
    content = b'{"prompt": "hi", "max_tokens": 2}'
    request = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
        sock.sendall(request * 3)
        received = b""
        while received.count(b"HTTP/1.1 200") < 3 or not received.endswith(b"}"):
            received += sock.recv(65536)
    assert not served.engine.aborted
