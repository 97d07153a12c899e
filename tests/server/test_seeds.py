"""`return_seed`: the seed of a request that named none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.launcher.serving import Server

CHAT = {"messages": [{"role": "user", "content": "Tell me a story."}]}
TEXT = {"prompt": "Once upon a time"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def choices(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Text and other fields of each choice of a chat or completion, streamed or not."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    body = {"max_tokens": 12, "ignore_eos": True, "temperature": 1.0, **body}
    reply = httpx.post(server.url + path, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    if not body.get("stream"):
        found: list[dict[str, Any]] = reply.json()["choices"]
        for choice in found:
            choice["text"] = choice["message"]["content"] if "message" in choice else choice["text"]
        return found
    merged: dict[int, dict[str, Any]] = {}
    for line in reply.text.splitlines():
        if not line.startswith("data: {"):
            continue
        for c in json.loads(line[6:])["choices"]:
            text = c["delta"].get("content", "") if "delta" in c else c["text"]
            before = merged.get(c["index"], {"text": ""})
            merged[c["index"]] = {**before, **c, "text": before["text"] + text}
    return [merged[i] for i in sorted(merged)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ask", [CHAT, TEXT])
def test_a_seed_that_was_drawn_brings_the_answer_again(
    server: Server, ask: dict[str, Any], stream: bool
) -> None:
    body = {**ask, "stream": stream, "return_seed": True}
    first, second = choices(server, {**body, "n": 2})
    assert first["text"] != second["text"]
    for choice in (first, second):
        assert 0 <= choice["seed"] < 2**53
        [again] = choices(server, {**body, "seed": choice["seed"]})
        assert (again["text"], again["seed"]) == (choice["text"], choice["seed"])


@pytest.mark.parametrize("stream", [False, True])
def test_seeds_are_returned_on_request_and_greedy_answers_have_none(
    server: Server, stream: bool
) -> None:
    for ask in (CHAT, TEXT):
        [choice] = choices(server, {**ask, "stream": stream})
        assert "seed" not in choice
        body = {**ask, "stream": stream, "return_seed": True, "temperature": 0}
        [choice] = choices(server, body)
        assert choice["seed"] is None
