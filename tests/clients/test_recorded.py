"""Requests of aider, Continue and opencode, sent again, and those of Open WebUI.

`recorded/` has a file for each client: its requests as a server got them, with long texts cut.
Those of Open WebUI are written after its source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import tiny
from benchmarks.served import Server, serve

FILES = sorted((Path(__file__).parent / "recorded").glob("*.json"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = tiny.flags(tmp_path_factory.mktemp("tiny"), 2048)
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with serve(*flags, *tools) as server:
        yield server


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_client(file: Path, server: Server) -> None:
    for request in json.loads(file.read_text()):
        method, path, body = request["method"], request["path"], request["body"]
        if body is not None:
            body = {**body, "max_tokens": 16}  # some ask for no end
        reply = httpx.request(
            method, server.url + path, json=body, headers=request["headers"], timeout=60
        )
        assert reply.status_code == 200, f"{path}: {reply.text}"
        if method == "GET":
            assert [model["id"] for model in reply.json()["data"]] == [tiny.NAME]
        elif body.get("stream"):
            check_stream(reply.text, body)
        else:
            assert reply.json()["choices"][0]["finish_reason"] in ("stop", "length")


def check_stream(text: str, body: dict[str, Any]) -> None:
    *events, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert last == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert all(chunk["model"] == tiny.NAME for chunk in chunks)
    ends = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert ends in (["stop"], ["length"])
    asked = (body.get("stream_options") or {}).get("include_usage", False)
    assert bool(chunks[-1].get("usage")) == asked
