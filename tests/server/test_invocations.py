"""/invocations answers as the endpoint whose body it is given (HTTP behaviour 13)."""

from __future__ import annotations

from typing import Any

import pytest

from galley.config.server import ServerConfig
from tests.server.served import MODEL, Served, serve

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"prompt": ["hi", "ho"], "max_tokens": 5, "n": 2}
VOLATILE = ("id", "created")


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in answer.items() if k not in VOLATILE}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "n": 3}),
        ("/v1/completions", TEXT),
        ("/v1/completions", {"prompt": [1, 2, 3], "logprobs": 2, "echo": True}),
    ],
)
def test_it_equals_the_native_endpoint(served: Served, path: str, body: dict[str, Any]) -> None:
    body = {"model": MODEL, **body}
    native, ours = served.post(path, body), served.post("/invocations", body)
    assert ours.status_code == 200
    assert plain(ours.json()) == plain(native.json())
    assert ours.json()["id"].split("-")[0] == native.json()["id"].split("-")[0]


def test_streams_are_equal(served: Served) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    native, ours = served.post("/v1/chat/completions", body), served.post("/invocations", body)
    assert ours.headers["content-type"] == native.headers["content-type"]
    ours_events, native_events = ours.text.split("\n\n"), native.text.split("\n\n")
    assert len(ours_events) == len(native_events) > 5
    assert ours_events[3].split('"choices"')[1] == native_events[3].split('"choices"')[1]


@pytest.mark.parametrize(
    "body", [{**CHAT, "n": 0}, {**TEXT, "temperature": -1}, {"prompt": None}, {"messages": 1}]
)
def test_so_are_errors(served: Served, body: dict[str, Any]) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    native, ours = served.post(path, body), served.post("/invocations", body)
    assert ours.status_code == native.status_code == 400
    assert ours.json() == native.json()


@pytest.mark.parametrize("content", [b"{}", b"[]", b"7", b"{", b"\xff", b'{"input": "x"}'])
def test_a_body_of_no_endpoint(served: Served, content: bytes) -> None:
    kind = {"content-type": "application/json"}
    answer = served.post("/invocations", content=content, headers=kind)
    assert answer.status_code == 400
    assert "messages, prompt" in answer.json()["error"]["message"]


def test_it_needs_no_key() -> None:
    """Checklist 171."""
    with serve(ServerConfig(api_key=("secret",))) as served:
        assert served.post("/v1/chat/completions", CHAT).status_code == 401
        assert served.post("/invocations", CHAT).status_code == 200


def test_a_header_names_the_adapter(served: Served) -> None:
    headers = {"X-Amzn-SageMaker-Adapter-Identifier": "other"}
    answer = served.post("/invocations", {"prompt": "Hi"}, headers=headers)
    assert answer.status_code == 404
    assert "`other`" in answer.json()["error"]["message"]
