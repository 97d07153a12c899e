"""`use_beam_search` on both generation endpoints."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.served import Served

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "use_beam_search": True}
TEXT: dict[str, Any] = {"prompt": "hi there", "use_beam_search": True}


def test_completions_best_first(served: Served) -> None:
    body = {**TEXT, "n": 3, "max_tokens": 4, "logprobs": 2, "return_token_ids": True}
    answer = served.post("/v1/completions", body).json()
    choices = answer["choices"]
    assert [c["index"] for c in choices] == [0, 1, 2]
    assert {c["finish_reason"] for c in choices} == {"length"}
    assert len({tuple(c["token_ids"]) for c in choices}) == 3
    totals = [sum(c["logprobs"]["token_logprobs"]) for c in choices]
    assert totals == sorted(totals, reverse=True)
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["prompt_tokens"] == len(served.engine.seen[0].prompt_token_ids) // 4
    # One request for the first token, then one a beam and token.
    assert len(served.engine.seen) == 1 + 3 * 3
    assert {r.sampling.logprobs for r in served.engine.seen} == {6}


def test_several_prompts(served: Served) -> None:
    body = {**TEXT, "prompt": ["hi there", "ho"], "n": 2, "max_tokens": 3}
    both = served.post("/v1/completions", body).json()["choices"]
    assert [c["index"] for c in both] == [0, 1, 2, 3]
    alone = served.post("/v1/completions", {**TEXT, "n": 2, "max_tokens": 3}).json()["choices"]
    assert [c["text"] for c in alone] == [c["text"] for c in both[:2]]


def test_chat(served: Served) -> None:
    body = {**CHAT, "n": 2, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    answer = served.post("/v1/chat/completions", body).json()
    assert len(answer["choices"]) == 2
    for choice in answer["choices"]:
        assert choice["message"]["role"] == "assistant"
        assert len(choice["logprobs"]["content"]) == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"stream": True}, "stream"),
        ({"stop": ["x"]}, "stop"),
        ({"top_p": 0.5}, "top_p"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"n": 11}, "n"),
        ({"max_tokens": 1000}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_unsupported_fields_are_refused(
    served: Served, change: dict[str, Any], field: str, chat: bool
) -> None:
    path, body = ("/v1/chat/completions", CHAT) if chat else ("/v1/completions", TEXT)
    answer = served.post(path, {**body, **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
