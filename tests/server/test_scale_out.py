"""A server in two parts: requests rendered without an engine, tokens in and out, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.served import SMALL, Server, serve
from tests.server import served as fake
from tests.small_model import small_model

JSON = dict[str, Any]
MESSAGES = [{"role": "user", "content": "Name three colours."}]
PARSER = ("--reasoning-parser", "deepseek_r1", "--enable-auto-tool-choice")
FLAGS = (*PARSER, "--tool-call-parser", "hermes")
#: The model without tools does not reason, so the parser of the front end is tested by derender.
PLAIN = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with serve(str(small_model()), *SMALL, "--enable-scale-out") as server:
        yield server


@pytest.fixture(scope="module")
def front() -> Iterator[Server]:
    with serve(str(small_model()), "--max-model-len", "2048", verb=("launch", "render")) as server:
        yield server


def post(server: Server, path: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert answer.status_code == status, answer.text
    return answer.json()


def without(answer: JSON, *names: str) -> JSON:
    return {name: value for name, value in answer.items() if name not in (*names, "created", "id")}


def events(server: Server, path: str, body: JSON) -> list[JSON]:
    answer = httpx.post(f"{server.url}{path}", json={**body, "stream": True}, timeout=120)
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [httpx.Response(200, text=line).json() for line in lines]


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2, "temperature": 0.9, "seed": 3, "logprobs": True, "top_logprobs": 2},
        {"stop": ["."], "max_tokens": 40},
        {"response_format": {"type": "json_object"}, "max_tokens": 24},
        {"return_token_ids": True, "min_tokens": 3, "logit_bias": {"338": 2}},
    ],
)
def test_chat_through_both_parts_is_the_chat(engine: Server, front: Server, more: JSON) -> None:
    request = {"messages": MESSAGES, **PLAIN, **more}
    whole = post(engine, "/v1/chat/completions", **request)
    rendered = post(front, "/v1/chat/completions/render", **request)
    assert rendered["sampling_params"]["max_tokens"] == request["max_tokens"]
    generated = post(engine, "/inference/v1/generate", **rendered)
    assert generated["request_id"] == rendered["request_id"]
    again = post(
        front,
        "/v1/chat/completions/derender",
        generate_response=generated,
        prompt_tokens=len(rendered["token_ids"]),
        prompt_token_ids=rendered["token_ids"],
        chat_request=request,
    )
    assert again["id"] == rendered["request_id"]
    assert without(again, "system_fingerprint") == without(whole, "system_fingerprint")


def test_completions_through_both_parts(engine: Server, front: Server) -> None:
    request = {"prompt": ["The sky is", "One, two,"], **PLAIN, "logprobs": 2}
    whole = post(engine, "/v1/completions", **request)
    rendered = post(front, "/v1/completions/render", **request)
    assert [r["request_id"][-2:] for r in rendered] == ["-0", "-1"]
    told = {"prompt": "The sky", "return_token_offsets": True, **PLAIN}
    [offsets] = [r["token_offsets"] for r in post(front, "/v1/completions/render", **told)]
    assert offsets == [[0, 3], [3, 7]]
    generated = [post(engine, "/inference/v1/generate", **each) for each in rendered]
    again = post(
        front,
        "/v1/completions/derender",
        generate_responses=generated,
        prompt_tokens=[len(each["token_ids"]) for each in rendered],
        prompt_token_ids=[each["token_ids"] for each in rendered],
        completion_request=request,
    )
    assert without(again, "system_fingerprint") == without(whole, "system_fingerprint")
    # Without the request the tokens alone make the text, and logprobs come as they are.
    alone = post(front, "/v1/completions/derender", generate_responses=generated[:1])
    assert alone["usage"]["prompt_tokens"] == 0
    assert alone["choices"][0]["text"] == whole["choices"][0]["text"]


def test_other_apis_render_what_they_would_generate_from(engine: Server, front: Server) -> None:
    chat = post(front, "/v1/chat/completions/render", messages=MESSAGES, **PLAIN)
    response = post(
        front, "/v1/responses/render", input=MESSAGES, temperature=0, max_output_tokens=12
    )
    message = post(front, "/v1/messages/render", messages=MESSAGES, model="", **PLAIN)
    assert chat["token_ids"] == response["token_ids"] == message["token_ids"]
    assert chat["sampling_params"] == response["sampling_params"] == message["sampling_params"]
    assert message["request_id"].startswith("msg-")
    text = post(engine, "/inference/v1/generate", **{**message, "output_mode": "text"})
    told = post(engine, "/v1/messages", messages=MESSAGES, model="", **PLAIN)
    assert text["choices"][0]["text"] == told["content"][0]["text"]


def test_a_stream_of_tokens_is_the_whole_answer(engine: Server, front: Server) -> None:
    ask = {"messages": MESSAGES, **PLAIN, "logprobs": True, "stream_options": None}
    rendered = post(front, "/v1/chat/completions/render", **ask)
    whole = post(engine, "/inference/v1/generate", **rendered)
    options = {"stream_options": {"include_usage": True}, "return_token_ids": True}
    parts = events(engine, "/inference/v1/generate", {**rendered, **options})
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == whole["usage"]
    assert parts[0]["prompt_token_ids"] == rendered["token_ids"]
    choices = [part["choices"][0] for part in parts[:-1]]
    [only] = whole["choices"]
    assert [i for choice in choices for i in choice["token_ids"]] == only["token_ids"]
    content = [e for choice in choices for e in choice["logprobs"]["content"]]
    assert content == only["logprobs"]["content"]
    assert content[0]["token"] == f"token_id:{only['token_ids'][0]}"
    assert choices[-1]["finish_reason"] == only["finish_reason"]


def derendered(front: Server, path: str, parts: list[JSON], **more: Any) -> list[JSON]:
    """The chunk of each event, with the state carried from one to the next."""
    chunks, state = [], None
    for part in parts:
        got = post(front, path, generate_chunk=part, stream=True, stream_state=state, **more)
        chunks.append(got["chunk"])
        state = got["stream_state"]
    return chunks


@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 2}])
def test_a_stream_of_tokens_is_a_stream_of_text(engine: Server, front: Server, more: JSON) -> None:
    ask = {"messages": MESSAGES, **PLAIN, **more}
    whole = post(engine, "/v1/chat/completions", **ask)
    rendered = post(front, "/v1/chat/completions/render", **ask)
    reports = {"include_usage": True, "continuous_usage_stats": True}
    options = {"stream_options": reports, "stream_interval": 3}
    parts = events(engine, "/inference/v1/generate", {**rendered, **options})
    assert all(part["usage"]["completion_tokens"] for part in parts)
    path = "/v1/chat/completions/derender"
    chunks = derendered(
        front, path, parts, prompt_token_ids=rendered["token_ids"], chat_request=ask
    )
    [only] = whole["choices"]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert choices[0]["delta"]["role"] == "assistant"
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert text == only["message"]["content"]
    assert choices[-1]["finish_reason"] == only["finish_reason"]
    assert chunks[-1]["usage"] == parts[-1]["usage"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    if more:
        content = [e for choice in choices for e in choice["logprobs"]["content"]]
        assert content == only["logprobs"]["content"]
    ask = {"prompt": "The sky is", **PLAIN, **({"logprobs": 2} if more else {})}
    [rendered] = post(front, "/v1/completions/render", **ask)
    parts = events(engine, "/inference/v1/generate", {**rendered, **options})
    chunks = derendered(front, "/v1/completions/derender", parts, completion_request=ask)
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    [only] = post(engine, "/v1/completions", **ask)["choices"]
    assert "".join(choice["text"] for choice in choices) == only["text"]
    if more:
        offsets = [at for choice in choices for at in choice["logprobs"]["text_offset"]]
        assert offsets == only["logprobs"]["text_offset"]


def test_tool_calls_and_reasoning_are_read_from_tokens() -> None:
    flags = (str(small_model()), "--max-model-len", "2048", *FLAGS)
    with serve(*flags, verb=("launch", "render")) as front:
        text = (
            "I think.</think>It rains."
            '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
        )
        ids = post(front, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
        response = {"choices": [{"index": 0, "token_ids": [*ids, 2], "finish_reason": "stop"}]}
        tools = [{"type": "function", "function": {"name": "weather"}}]
        request = {"messages": [{"role": "user", "content": "Hi"}], "tools": tools}
        path = "/v1/chat/completions/derender"
        [choice] = post(front, path, generate_response=response, chat_request=request)["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["reasoning"] == "I think."
        assert choice["message"]["content"] == "It rains."
        [call] = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
        steps = [ids[i : i + 3] for i in range(0, len(ids), 3)] + [[2]]
        parts = [{"choices": [{"index": 0, "token_ids": step}]} for step in steps]
        parts[-1]["choices"][0]["finish_reason"] = "stop"
        deltas = [c["choices"][0] for c in derendered(front, path, parts, chat_request=request)
                  if c["choices"]]  # fmt: skip
        assert deltas[-1]["finish_reason"] == "tool_calls"
        assert "".join(d["delta"].get("reasoning") or "" for d in deltas) == "I think."
        assert "".join(d["delta"].get("content") or "" for d in deltas) == "It rains."
        calls = [c for d in deltas for c in d["delta"].get("tool_calls") or ()]
        assert [c["function"]["name"] for c in calls if "id" in c] == ["weather"]
        arguments = "".join(c["function"]["arguments"] for c in calls)
        assert json.loads(arguments) == {"city": "Paris"}
        missing = post(front, path, 400, generate_response=response)["error"]
        assert missing["param"] == "chat_request"


def test_refusals(engine: Server, front: Server) -> None:
    one = {"choices": [{"index": 0, "token_ids": [5], "finish_reason": "stop"}]}
    chat, generate = "/v1/chat/completions/derender", "/inference/v1/generate"
    marker = {"ids": [70_000], "size": 1, "steps": ""}
    limits = {"start": marker, "end": marker}
    two = {"choices": one["choices"] * 2}
    torn = {"output_token_ids": [5, 6], "output_chunk_lens": [1]}
    for server, path, status, param, body in [
        (front, chat, 400, "generate_chunk", {"generate_response": one, "stream": True}),
        (front, chat, 400, "generate_chunk", {"generate_chunk": two, "stream": True}),
        (
            *(front, chat, 400, "stream_state"),
            {"generate_chunk": one, "stream": True, "stream_state": torn},
        ),
        (
            *(front, chat, 400, "stream_state"),
            {"generate_chunk": one, "stream": True, "prompt_token_ids": [5] * 10_000},
        ),
        (front, chat, 400, "generate_response", {"generate_response": {"choices": []}}),
        (front, chat, 404, "model", {"generate_response": one, "model": "other"}),
        (front, "/v1/completions/derender", 400, "generate_responses", {"generate_responses": []}),
        (
            *(front, "/v1/completions/derender", 400, "prompt_tokens"),
            {"generate_responses": [one], "prompt_tokens": [1, 2]},
        ),
        (engine, generate, 400, "token_ids", {"token_ids": [], "sampling_params": {}}),
        (engine, generate, 400, "prompt", {"token_ids": [10**6], "sampling_params": {}}),
        (
            *(engine, generate, 400, "sampling_params"),
            {"token_ids": [1], "sampling_params": {"top_p": 7}},
        ),
        (
            *(engine, generate, 400, "sampling_params"),
            {"token_ids": [1], "sampling_params": {"reasoning_limits": limits}},
        ),
    ]:
        error = post(server, path, status, **body)["error"]
        assert error["param"] == param, error
    assert httpx.get(f"{front.url}/health").status_code == 200
    assert httpx.post(f"{front.url}/v1/completions", json={}).status_code == 404
    aborting = {"request_ids": ["unknown"]}
    assert httpx.post(f"{engine.url}/inference/v1/abort_requests", json=aborting).is_success


def test_an_engine_of_tokens_alone_has_no_tokenizer(engine: Server, front: Server) -> None:
    ask = {"messages": MESSAGES, **PLAIN}
    rendered = post(front, "/v1/chat/completions/render", **ask)
    with serve(str(small_model()), *SMALL, "--tokens-only") as server:
        told = post(server, "/inference/v1/generate", **rendered)
        assert told["choices"] == post(engine, "/inference/v1/generate", **rendered)["choices"]
        stop = {"token_ids": [1], "sampling_params": {"stop": ["."]}}
        post(server, "/inference/v1/generate", 400, **stop)
        assert server.status("/v1/completions") == server.status("/v1/completions/render") == 404
        aborting = {"request_ids": ["unknown"]}
        assert httpx.post(f"{server.url}/abort_requests", json=aborting).is_success


def test_routes_are_closed_without_the_flag() -> None:
    with fake.serve() as served:
        answer = served.post("/inference/v1/generate", json={})
    assert answer.status_code == 403
    assert "--enable-scale-out" in answer.json()["error"]["message"]
