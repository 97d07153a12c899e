"""/generative_scoring: probabilities of labels, against prompt_logprobs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.served import SMALL, Server, serve
from tests.small_model import small_model

QUERY = "Q: Is Paris the capital of"
ITEMS = [" France? A:", " Germany? A:"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(str(small_model()), *SMALL) as server:
        yield server


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=120)


def ids(server: Server, text: str) -> list[int]:
    return list(post(server, "/tokenize", prompt=text).json()["tokens"])


def score(server: Server, **body: Any) -> list[float]:
    answer = post(server, "/generative_scoring", **body)
    assert answer.status_code == 200, answer.text
    return [each["score"] for each in answer.json()["data"]]


def test_scores_are_the_models_probabilities(server: Server) -> None:
    yes, no = ids(server, " Yes")[0], ids(server, " No")[0]
    ask = {"query": QUERY, "items": ITEMS, "label_token_ids": [yes, no]}
    answer = post(server, "/generative_scoring", **ask).json()
    assert answer["id"].startswith("generative-scoring-")
    assert [(d["index"], d["object"]) for d in answer["data"]] == [(0, "score"), (1, "score")]
    usage = answer["usage"]
    assert usage["completion_tokens"] == 2
    assert usage["total_tokens"] == usage["prompt_tokens"] + 2
    # The same from a completion whose prompt ends with the label.
    whole = score(server, **ask, apply_softmax=False)
    other = score(server, **{**ask, "label_token_ids": [no, yes]}, apply_softmax=False)
    for i, item in enumerate(ITEMS):
        prompt = [*ids(server, QUERY), *ids(server, item)]
        values = []
        for label in (yes, no):
            body = {"prompt": [*prompt, label], "max_tokens": 1, "prompt_logprobs": 0}
            told = post(server, "/v1/completions", **body).json()["choices"][0]["prompt_logprobs"]
            values.append(told[-1][str(label)]["logprob"])
        assert [whole[i], other[i]] == pytest.approx([math.exp(v) for v in values], rel=1e-5)
        share = math.exp(values[0]) / sum(math.exp(v) for v in values)
        assert answer["data"][i]["score"] == pytest.approx(share, rel=1e-5)
    # Token ids give the same, a label that is said twice counts once, and items may stand first.
    by_ids = {"query": ids(server, QUERY), "items": [ids(server, item) for item in ITEMS]}
    assert score(server, **by_ids, label_token_ids=[yes, no, no]) == [
        d["score"] for d in answer["data"]
    ]
    turned = score(
        server, query=ITEMS[0], items=[QUERY], label_token_ids=[yes, no], item_first=True
    )
    assert turned == [answer["data"][0]["score"]]


def test_without_a_tokenizer_ids_come_in_and_go_out(server: Server) -> None:
    prompt, body = ids(server, QUERY), {"max_tokens": 3, "temperature": 0, "logprobs": 1}
    whole = post(
        server, "/v1/completions", prompt=prompt, return_tokens_as_token_ids=True,
        return_token_ids=True, **body,
    ).json()["choices"][0]  # fmt: skip
    ask = {"query": prompt, "items": [[5], [6]], "label_token_ids": [7, 8]}
    with serve(str(small_model()), *SMALL, "--skip-tokenizer-init") as bare:
        told = post(bare, "/v1/completions", prompt=prompt, return_token_ids=True, **body)
        choice = told.json()["choices"][0]
        assert choice["token_ids"] == whole["token_ids"]
        assert choice["text"] == ""
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            assert choice["logprobs"][name] == whole["logprobs"][name]
        assert score(bare, **ask) == score(server, **ask)
        for path, given in (
            ("/v1/completions", {"prompt": "hi"}),
            ("/generative_scoring", {**ask, "query": "hi"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ):
            answer = post(bare, path, **given)
            assert answer.status_code == 400
            assert "tokenizer" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"items": []}, "items must not be empty"),
        ({"label_token_ids": []}, "label_token_ids must not be empty"),
        ({"label_token_ids": [10**6]}, "1000000 is out of vocabulary"),
        ({"query": 5}, "query"),
        ({"items": ["word " * 5000]}, "context length"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    server: Server, change: dict[str, Any], words: str
) -> None:
    answer = post(
        server,
        "/generative_scoring",
        **{"query": QUERY, "items": ITEMS, "label_token_ids": [1], **change},
    )
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
