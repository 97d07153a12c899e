"""Optional fields of answers and logs: logprobs of requested tokens, timings, texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from galley.config.server import ServerConfig
from galley.errors import ConfigError
from tests.launcher.serving import Server
from tests.server.served import serve
from tests.server.test_disconnect import wait_for

MODEL = "SmolLM2-135M-Instruct"
#: Four tokens, in no order.
IDS = [504, 2, 49_151, 1042]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(
        *("--enable-per-request-metrics", "--enable-log-requests", "--enable-log-outputs"),
        *("--max-log-len", "12", "--log-error-stack", "--max-logprobs", "-1"),
        *("--enable-request-id-headers", "--per-request-spec-decode-metrics", "summary"),
        *("--spec-method", "ngram", "--speculative-config.draft_length", "fixed"),
        env={"VLLM_LOGGING_STREAM": "ext://sys.stderr"},
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    known = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 5, "temperature": 0}
    extra = fields.pop("extra_body", {})
    return client.completions.create(**{**known, **fields}, extra_body=extra)


def test_tokens_that_are_asked_for_take_the_place_of_the_likely(client: openai.OpenAI) -> None:
    extra = {"logprob_token_ids": IDS, "return_tokens_as_token_ids": True}
    asked = complete(client, logprobs=1, extra_body=extra).choices[0]
    whole = {"return_tokens_as_token_ids": True}
    everything = complete(client, logprobs=49_152, extra_body=whole).choices[0]
    assert asked.text == everything.text
    assert asked.logprobs.tokens == everything.logprobs.tokens
    assert asked.logprobs.token_logprobs == everything.logprobs.token_logprobs
    pairs = zip(asked.logprobs.top_logprobs, everything.logprobs.top_logprobs, strict=True)
    for own, (some, every) in zip(asked.logprobs.tokens, pairs, strict=True):
        assert set(some) == {own, *(f"token_id:{i}" for i in IDS)}
        for name, value in some.items():
            assert math.isclose(value, every[name], abs_tol=1e-4)


def test_in_a_chat_and_a_stream(client: openai.OpenAI) -> None:
    chat: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Say yes or no."}],
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": True,
        "extra_body": {"logprob_token_ids": IDS, "return_tokens_as_token_ids": True},
    }
    whole = client.chat.completions.create(**chat).choices[0].logprobs.content
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(**chat, stream=True):
        for choice in chunk.choices:
            streamed += (choice.logprobs and choice.logprobs.content) or []
    assert streamed == whole
    for entry in whole:
        assert {c.token for c in entry.top_logprobs} >= {f"token_id:{i}" for i in IDS}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("completions", {"logprob_token_ids": [1]}),
        ("completions", {"logprob_token_ids": [49_152], "logprobs": 1}),
        ("completions", {"logprob_token_ids": [-1], "logprobs": 1}),
        ("completions", {"logprob_token_ids": [1] * 129, "logprobs": 1}),
        ("completions", {"logprob_token_ids": [1], "logprobs": 1, "use_beam_search": True}),
        ("completions", {"logprob_token_ids": [1], "logprobs": 1, "echo": True, "max_tokens": 0}),
        ("chat/completions", {"logprob_token_ids": [1]}),
    ],
)
def test_tokens_that_cannot_be_asked_for(server: Server, path: str, fields: dict[str, Any]) -> None:
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    body.pop("messages" if path == "completions" else "prompt")
    answer = httpx.post(f"{server.url}/v1/{path}", json={**body, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logprob_token_ids"


def test_an_answer_that_repeats_itself_ends(server: Server, client: openai.OpenAI) -> None:
    detection = {"max_pattern_size": 2, "min_count": 4}
    extra = {"repetition_detection": detection, "ignore_eos": True}
    repeating = complete(client, max_tokens=50, logit_bias={"504": 100}, extra_body=extra)
    [choice] = repeating.choices
    assert choice.finish_reason == "repetition"
    assert choice.model_extra["stop_reason"] == "repetition_detected"
    assert repeating.usage.completion_tokens == 4
    told = httpx.get(f"{server.url}/metrics").text.splitlines()
    [line] = [x for x in told if "request_success_total" in x and '"repetition"' in x]
    assert line.endswith(" 1.0")
    free = complete(client, max_tokens=50, logit_bias={"504": 100}, extra_body={"ignore_eos": True})
    assert free.usage.completion_tokens == 50
    server.inspect()


def test_timings(server: Server, client: openai.OpenAI) -> None:
    answer = complete(client, max_tokens=20, extra_body={"ignore_eos": True})
    told = answer.model_extra["metrics"]
    assert told["time_to_first_token_ms"] > 0
    assert told["queue_time_ms"] >= 0
    assert math.isclose(told["generation_time_ms"], 19 * told["mean_itl_ms"])
    inference = told["time_to_first_token_ms"] + told["generation_time_ms"]
    assert math.isclose(told["tokens_per_second"], 20 / inference * 1000, rel_tol=1e-6)
    assert complete(client, n=2).model_extra["metrics"]["generation_time_ms"] is None
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    assert client.chat.completions.create(**chat).model_extra["metrics"]["mean_itl_ms"] > 0
    options = {"include_usage": True}
    *_, last = client.chat.completions.create(**chat, stream=True, stream_options=options)
    assert last.usage is not None
    assert last.model_extra["metrics"]["time_to_first_token_ms"] > 0


def test_how_the_drafts_of_an_answer_fared(server: Server, client: openai.OpenAI) -> None:
    fields = {"prompt": "one two three four five " * 6, "max_tokens": 20, "n": 2}
    told = complete(client, **fields).model_extra["metrics"]["speculative_decoding"]
    assert told["num_accepted_draft_tokens"] > 0
    steps, drafts = told["num_spec_steps"], told["num_draft_tokens"]
    assert sum(told["acceptance_histogram"]) == steps
    assert told["mean_acceptance_length"] == 1 + told["num_accepted_draft_tokens"] / steps
    assert told["draft_acceptance_rate"] == told["num_accepted_draft_tokens"] / drafts
    options = {"include_usage": True}
    *_, last = complete(client, **fields, stream=True, stream_options=options)
    assert last.model_extra["metrics"]["speculative_decoding"] == told
    off = complete(client, **fields, extra_body={"speculative": False})
    assert off.model_extra["metrics"]["speculative_decoding"]["num_draft_tokens"] == 0


def test_answers_are_logged_and_cut(server: Server, client: openai.OpenAI) -> None:
    extra = {"request_id": "logged", "ignore_eos": True}
    answer = complete(client, max_tokens=20, extra_body=extra)
    assert answer.id == "cmpl-logged"
    text = answer.choices[0].text
    assert len(text) > 12
    line = f"Generated response cmpl-logged-0: output: {text[:12]!r}, tokens: 20"
    wait_for(lambda: server.count(line) == 1)


def test_where_an_error_was_found_is_logged(server: Server) -> None:
    body = {"prompt": "x", "temperature": -1}
    trace = "Traceback (most recent call last)"
    before = server.count(trace)
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 400
    wait_for(lambda: server.count(trace) == before + 1)
    assert server.count("temperature must be at least 0") >= 1


def test_nothing_is_reported_without_a_request() -> None:
    with serve() as served:
        answer = served.post("/v1/completions", {"prompt": "hi", "max_tokens": 2}).json()
        assert answer["metrics"] is None
    with pytest.raises(ConfigError, match="--enable-log-requests"):
        ServerConfig(enable_log_outputs=True)
