"""A stream besides its events: it keeps quiet connections, waits for slow readers, is
counted to the last byte, and closes on those who never ask.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from galley.config.server import ServerConfig
from galley.frontend.input_processor import Limits
from galley.server.event_response import KEEP_ALIVE_COMMENT
from tests.server.served import REPLY, Served, reply_with, serve, tokenizer
from tests.server.test_disconnect import send, wait_for

BODY: dict[str, Any] = {"prompt": "hi", "stream": True, "max_tokens": 64}


@pytest.fixture(scope="module")
def patient_server() -> Iterator[Served]:
    with serve(ServerConfig(sse_keep_alive_interval=1)) as served:
        yield served


@pytest.fixture
def patient(patient_server: Served) -> Iterator[Served]:
    engine = patient_server.engine
    script = engine.script
    yield patient_server
    engine.hold, engine.failure, engine.pause, engine.script = False, None, 0.0, script


def test_silence_is_filled_before_the_first_output(patient: Served) -> None:
    patient.engine.hold = True
    with httpx.stream("POST", f"{patient.url}/v1/completions", json=BODY, timeout=20) as answer:
        assert answer.status_code == 200
        parts = answer.iter_raw()
        silence = b""
        while silence.count(KEEP_ALIVE_COMMENT) < 2:
            silence += next(parts)
        assert not silence.replace(KEEP_ALIVE_COMMENT, b"")
        patient.engine.hold = False
        rest = b"".join(parts)
    assert rest.count(b"data: {") > 5
    assert rest.count(KEEP_ALIVE_COMMENT) < 5, "what comes in time needs no filling"
    assert rest.endswith(b"data: [DONE]\n\n")


def test_silence_is_filled_between_outputs_and_failures_are_events(patient: Served) -> None:
    patient.engine.script = lambda request: [504] * 64
    patient.engine.pause = 0.1
    with httpx.stream("POST", f"{patient.url}/v1/completions", json=BODY, timeout=20) as answer:
        patient.engine.hold = True
        parts = answer.iter_raw()
        for part in parts:
            if KEEP_ALIVE_COMMENT in part:
                break
        patient.engine.failure = "it broke"
        patient.engine.hold = False
        rest = b"".join(parts)
    assert b"it broke" in rest
    assert rest.endswith(b"data: [DONE]\n\n")


def test_without_the_flag_nothing_fills_the_silence(served: Served) -> None:
    served.engine.pause = 0.05
    text = served.post("/v1/completions", BODY).text
    assert KEEP_ALIVE_COMMENT.decode() not in text


def test_updates_of_a_slow_reader_merge() -> None:
    """A reader that stops costs no memory: when it goes on, it gets the rest in few events."""
    word = tokenizer().encode("word", False)
    limits = Limits(vocab_size=49152, max_model_len=60_000, eos_token_ids=(2,))
    with serve(script=lambda request: word * 50_000, limits=limits) as served:
        body = {**BODY, "max_tokens": 40_000, "temperature": 0}
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", served.port))
            ask(sock, body)
            wait_for(lambda: served.engine.num_unfinished == 1)
            wait_for(lambda: served.engine.num_unfinished == 0)
            received = bytearray()
            while not received.endswith(b"0\r\n\r\n"):
                received += sock.recv(1 << 20)
        events = received.count(b"data: {")
        # The socket's buffers took the first ones; the rest had merged.
        assert 100 < events < 35_000
        assert received.count(b"word") == 40_000
        assert received.count(b"data: [DONE]") == 1


def ask(sock: socket.socket, body: dict[str, Any]) -> None:
    import json

    content = json.dumps(body).encode()
    sock.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
    )


def test_every_byte_is_counted(served: Served) -> None:
    served.engine.pause = 0.002
    sample = 'http_response_size_bytes_sum{handler="/v1/completions"}'
    served.post("/v1/completions", BODY)
    before = served.metric(sample)
    size = len(served.post("/v1/completions", BODY).content)
    assert served.metric(sample) - before == size


def test_many_streams_at_once_do_not_mix() -> None:
    texts = [f"number {i} " * (i + 1) + REPLY for i in range(8)]
    scripts = [reply_with(text) for text in texts]
    prompts = [f"p{i}" for i in range(8)]
    with serve(script=lambda r: scripts[int(r.request_id.rpartition("-")[2])](r)) as served:
        served.engine.pause = 0.001
        body = {**BODY, "prompt": prompts, "max_tokens": 200}
        found = [""] * 8
        with served.client() as client:
            for event in client.completions.create(model="tiny", **body):
                for choice in event.choices:
                    found[choice.index] += choice.text
        assert found == texts


def test_a_connection_is_reused_after_a_stream(served: Served) -> None:
    """Also one whose parts have gone past the application's layers; nothing of them is kept."""
    with httpx.Client(base_url=served.url) as client:
        for _ in range(3):
            assert client.post("/v1/completions", json=BODY).text.endswith("[DONE]\n\n")
        assert client.get("/health").status_code == 200
        connections = served.call(lambda: list(served.listener.server_state.connections))
        assert len(connections) >= 1
        assert not any(connection._sinks for connection in connections)


def test_pipelined_requests_are_answered_one_after_another(served: Served) -> None:
    """Streams among them: all are sent before the first answer is read."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
        for _ in range(3):
            ask(sock, BODY)
        received = b""
        while received.count(b"0\r\n\r\n") < 3:
            received += sock.recv(1 << 16)
    first, second, third = received.split(b"HTTP/1.1 200 OK")[1:]
    for answer in (first, second, third):
        assert answer.count(b"data: [DONE]") == 1


def test_a_client_that_sends_no_head_is_let_go() -> None:
    with serve(head_timeout=0.5) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as silent:
            assert silent.recv(100) == b""
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            assert slow.recv(100) == b""
        # A head in time is enough, however long the answer takes.
        served.engine.pause = 0.05
        sock = send(served, "/v1/completions", {**BODY, "stream": False})
        assert b"200 OK" in sock.recv(1000)
        sock.close()


def test_several_tokens_an_event() -> None:
    """The first and the last come at once."""
    ids = tokenizer().encode(REPLY, False)
    with serve(script=lambda request: ids) as served:
        served.engine.pause = 0.01
        body = {"prompt": "hi", "max_tokens": 40, "stream": True, "return_token_ids": True}
        counts = {}
        for interval in (1, 5):
            asked = {**body, "stream_interval": interval}
            answer = served.post("/v1/completions", asked).text
            events = [json.loads(e[6:]) for e in answer.split("\n\n") if e.startswith("data: {")]
            tokens = [len(e["choices"][0]["token_ids"]) for e in events]
            counts[interval] = tokens
        assert sum(counts[5]) == sum(counts[1]) > len(ids)  # with the one that ends it
        assert counts[5][0] < 5, "the first comes at once"
        assert min(counts[5][1:-1]) >= 5
        assert len(counts[5]) < len(counts[1])
        refused = served.post("/v1/completions", {**body, "stream_interval": 0})
        assert refused.json()["error"]["param"] == "stream_interval"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_names_and_texts_are_not_formats(path: str) -> None:
    """The JSON around the text of plain events is encoded once; a `%` in it is a `%`."""
    text = 'from 5% to 10%b, "quoted", %%x and a line\nbreak ' * 3
    with serve(script=reply_with(text), names=("100%b%x",)) as served:
        asked = {"messages": [{"role": "user", "content": "hi"}], **BODY, "max_tokens": 200}
        del asked["messages" if path == "/v1/completions" else "prompt"]
        served.engine.pause = 0.001
        answer = served.post(path, asked).text
    events = [json.loads(e[6:]) for e in answer.split("\n\n") if e.startswith("data: {")]
    assert len(events) > 20
    assert {e["model"] for e in events} == {"100%b%x"}
    choices = [e["choices"][0] for e in events]
    said = "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices)
    assert said == text


def test_the_usage_of_a_stream_counts_every_token(served: Served) -> None:
    ids = tokenizer().encode(REPLY, False)
    served.engine.pause = 0.001
    asked = {**BODY, "stream_options": {"include_usage": True}}
    answer = served.post("/v1/completions", asked).text
    events = [json.loads(e[6:]) for e in answer.split("\n\n") if e.startswith("data: {")]
    assert events[-1]["usage"]["completion_tokens"] == len(ids) + 1
    assert len(events) > len(ids) / 2, "tokens came one by one"
