"""--logprobs-mode over HTTP: what was drawn from, and numbers that JSON has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.launcher.serving import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--logprobs-mode", "processed_logprobs")
    yield server
    server.close()


def post(server: Server, path: str, **body: Any) -> Any:
    body = {"max_tokens": 4, "seed": 3, "temperature": 1.5, "top_k": 2, "logprobs": 3, **body}
    reply = httpx.post(server.url + path, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_completions_report_processed_logprobs(server: Server) -> None:
    logprobs = post(server, "/v1/completions", prompt="The sea is")["choices"][0]["logprobs"]
    assert len(logprobs["top_logprobs"]) == 4
    for own, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        kept = [v for v in top.values() if v > -9999.0]
        assert len(kept) == 2
        assert len(top) == 3, "the third could not be drawn"
        assert math.isclose(sum(math.exp(v) for v in kept), 1.0, rel_tol=1e-5)
        assert own in kept


def test_chats_report_processed_logprobs(server: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answer = post(server, "/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=3)
    for position in answer["choices"][0]["logprobs"]["content"]:
        values = [entry["logprob"] for entry in position["top_logprobs"]]
        assert values[2] == -9999.0
        assert math.isclose(sum(map(math.exp, values[:2])), 1.0, rel_tol=1e-5)
