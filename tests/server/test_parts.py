"""Reasoning and tool calls through the real clients of three APIs, streamed and whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from galley.config.server import ServerConfig
from tests.chat.call_tags import FORMATS
from tests.server.served import MODEL, Served, reply_with, serve, tokenizer

REASONING = "Two numbers, so I add them. "
CONTENT = "Let me see."
ARGUMENTS = '{"a": 1, "b": "zwei é🤗"}'
TEXT = f"<think>{REASONING}</think>{CONTENT} [add:{ARGUMENTS}][stop:{{}}]"
HI: list[Any] = [{"role": "user", "content": "1 + 2?"}]
FUNCTIONS: list[Any] = [{"name": "add", "parameters": {"type": "object"}}, {"name": "stop"}]
TOOLS: list[Any] = [{"type": "function", "function": function} for function in FUNCTIONS]
FLAT_TOOLS: list[Any] = [{"type": "function", **function} for function in FUNCTIONS]
CLAUDE_TOOLS: list[Any] = [
    {"name": function["name"], "input_schema": {"type": "object"}} for function in FUNCTIONS
]
SERVER = ServerConfig(enable_auto_tool_choice=True, tool_call_parser="tags")


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with serve(SERVER, script=reply_with(TEXT), formats=FORMATS, store_responses=True) as served:
        yield served


# ---------------------------------------------------------------------------- chat


def test_chat_whole(served: Served) -> None:
    answer = served.client().chat.completions.create(model=MODEL, messages=HI, n=2, tools=TOOLS)
    assert not served.engine.seen[0].sampling.skip_special_tokens
    for choice in answer.choices:
        message: Any = choice.message
        assert message.content == CONTENT
        assert message.reasoning == message.reasoning_content == REASONING
        first, second = message.tool_calls
        assert (first.id, first.type) == ("call_0", "function")
        assert (first.function.name, first.function.arguments) == ("add", ARGUMENTS)
        assert (second.id, second.function.name, second.function.arguments) == (
            "call_1",
            "stop",
            "{}",
        )
        assert choice.finish_reason == "tool_calls"


def test_chat_streamed_is_what_is_whole(served: Served) -> None:
    client = served.client()
    with client.chat.completions.stream(
        model=MODEL, messages=HI, n=2, tools=TOOLS, extra_body={"return_token_ids": True}
    ) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        answer = stream.get_final_completion()
    whole = client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)
    for choice in answer.choices:
        assert choice.message.content == CONTENT
        calls = [call.function.model_dump() for call in choice.message.tool_calls or ()]
        assert [(f["name"], f["arguments"]) for f in calls] == [("add", ARGUMENTS), ("stop", "{}")]
        assert choice.finish_reason == whole.choices[0].finish_reason
    deltas = [c.delta for chunk in chunks for c in chunk.choices if c.index == 1]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(getattr(delta, name, None) or "" for delta in deltas) == REASONING
    assert len([d for d in deltas if getattr(d, "reasoning", None)]) > 3
    assert not any(getattr(d, "reasoning", None) and d.content for d in deltas)


def test_tokens_of_reasoning_are_counted(served: Served) -> None:
    client, tokens = served.client(), len(tokenizer().encode(REASONING, False))
    asked: Any = {"model": MODEL, "messages": HI, "tools": TOOLS}
    one = client.chat.completions.create(**asked, n=2).usage
    assert one is not None
    assert one.completion_tokens_details is not None
    assert one.completion_tokens_details.reasoning_tokens == 2 * tokens
    *_, last = client.chat.completions.create(
        **asked, n=2, stream=True, stream_options={"include_usage": True}
    )
    assert last.usage == one
    hidden = client.chat.completions.create(**asked, extra_body={"include_reasoning": False}).usage
    assert hidden is not None
    assert hidden.completion_tokens_details is not None
    assert hidden.completion_tokens_details.reasoning_tokens == tokens
    response = client.responses.create(model=MODEL, input="hi").usage
    assert response is not None
    assert response.output_tokens_details.reasoning_tokens == tokens
    *_, done = client.responses.create(model=MODEL, input="hi", stream=True)
    assert done.type == "response.completed"
    assert done.response.usage.output_tokens_details == response.output_tokens_details


def test_chat_that_is_cut_inside_a_call(served: Served) -> None:
    options: Any = {"model": MODEL, "messages": HI, "max_tokens": 25, "tools": TOOLS}
    choice = served.client().chat.completions.create(**options).choices[0]
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls or ()
    assert ARGUMENTS.startswith(call.function.arguments)
    *_, last = served.client().chat.completions.create(**options, stream=True)
    assert last.choices[0].finish_reason == "length"


def test_reasoning_alone_has_no_content(served: Served) -> None:
    message: Any = (
        served.client()
        .chat.completions.create(model=MODEL, messages=HI, max_tokens=6)
        .choices[0]
        .message
    )
    assert message.content is None
    assert message.tool_calls is None
    assert REASONING.startswith(message.reasoning)


def test_logprobs_and_token_ids_come_with_every_token(served: Served) -> None:
    """Also with tokens that are a marker and no part."""
    options: Any = {"model": MODEL, "messages": HI, "logprobs": True, "tools": TOOLS}
    whole: Any = served.client().chat.completions.create(**options)
    stream: Any = served.client().chat.completions.create(**options, stream=True)
    streamed = [
        entry.token
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert streamed == [entry.token for entry in whole.choices[0].logprobs.content]


def test_a_batch_parses_each_conversation(served: Served) -> None:
    body = {"model": MODEL, "messages": [HI, HI]}
    choices = served.post("/v1/chat/completions/batch", body).json()["choices"]
    assert [choice["message"]["reasoning"] for choice in choices] == [REASONING] * 2


# ---------------------------------------------------------------------------- responses


def _items(output: list[Any]) -> list[tuple[str, str]]:
    items = []
    for item in output:
        if item.type == "function_call":
            items.append((item.name, item.arguments))
        else:
            [part] = item.content
            items.append((item.type, part.text))
        assert item.status == "completed"
    return items


ITEMS = [("reasoning", REASONING), ("message", CONTENT), ("add", ARGUMENTS), ("stop", "{}")]


def test_responses_whole(served: Served) -> None:
    response = served.client().responses.create(model=MODEL, input="1 + 2?", tools=FLAT_TOOLS)
    assert _items(response.output) == ITEMS
    assert response.output_text == CONTENT
    assert [item.call_id for item in response.output if item.type == "function_call"] == [
        "call_0",
        "call_1",
    ]


def test_responses_streamed(served: Served) -> None:
    with served.client().responses.stream(model=MODEL, input="1 + 2?", tools=FLAT_TOOLS) as stream:
        events: list[Any] = list(stream)
        response = stream.get_final_response()
    assert _items(response.output) == ITEMS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for index, item in enumerate(response.output):
        mine = [e for e in events if getattr(e, "output_index", None) == index]
        ids = {getattr(e, "item_id", None) or e.item.id for e in mine}
        assert ids == {item.id}
        kinds = [e.type.removeprefix("response.") for e in mine]
        assert (kinds[0], kinds[-1]) == ("output_item.added", "output_item.done")
        deltas = "".join(e.delta for e in mine if e.type.endswith(".delta"))
        assert deltas == ITEMS[index][1]
    begun = [e.output_index for e in events if e.type == "response.output_item.added"]
    done = [e.output_index for e in events if e.type == "response.output_item.done"]
    assert begun == done == [0, 1, 2, 3]


def test_a_response_with_calls_is_continued(served: Served) -> None:
    client = served.client()
    first = client.responses.create(model=MODEL, input="1 + 2?", tools=FLAT_TOOLS)
    second = client.responses.create(
        model=MODEL, input="go on", previous_response_id=first.id, tools=FLAT_TOOLS
    )
    assert _items(second.output) == ITEMS


def test_a_background_response_has_the_same_items(served: Served) -> None:
    stream: Any = served.client().responses.create(
        model=MODEL, input="1 + 2?", background=True, stream=True, tools=FLAT_TOOLS
    )
    *_, last = stream
    assert last.type == "response.completed"
    assert _items(last.response.output) == ITEMS


# ---------------------------------------------------------------------------- anthropic


def _client(served: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=30)


def _check_message(message: Any) -> None:
    thinking, text, first, second = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", REASONING)
    assert (text.type, text.text) == ("text", CONTENT)
    assert (first.type, first.id, first.name) == ("tool_use", "call_0", "add")
    assert first.input == json.loads(ARGUMENTS)
    assert (second.name, second.input) == ("stop", {})
    assert message.stop_reason == "tool_use"


def test_messages_whole(served: Served) -> None:
    _check_message(
        _client(served).messages.create(model=MODEL, messages=HI, max_tokens=99, tools=CLAUDE_TOOLS)
    )


def test_messages_streamed(served: Served) -> None:
    with _client(served).messages.stream(
        model=MODEL, messages=HI, max_tokens=99, tools=CLAUDE_TOOLS
    ) as stream:
        events = [event.type for event in stream]
        _check_message(stream.get_final_message())
    assert events.count("content_block_start") == events.count("content_block_stop") == 4
    assert events.count("thinking") > 3


@pytest.mark.parametrize("tokens", [25, 2])
def test_a_message_that_is_cut(served: Served, tokens: int) -> None:
    """Inside a call, and before any part."""
    whole = _client(served).messages.create(
        model=MODEL, messages=HI, max_tokens=tokens, tools=CLAUDE_TOOLS
    )
    with _client(served).messages.stream(
        model=MODEL, messages=HI, max_tokens=tokens, tools=CLAUDE_TOOLS
    ) as stream:
        streamed = stream.get_final_message()
    assert whole.stop_reason == streamed.stop_reason == "max_tokens"
    kinds = [block.type for block in whole.content]
    assert kinds == [block.type for block in streamed.content]
    assert kinds


# ---------------------------------------------------------------------------- without parts


def test_an_answer_without_text_is_an_empty_one() -> None:
    """Each API has its own form of nothing."""
    with serve(script=lambda request: [], formats=FORMATS) as served:
        client: openai.OpenAI = served.client()
        chat = client.chat.completions.create(model=MODEL, messages=HI)
        response = client.responses.create(model=MODEL, input="hi")
        with client.responses.stream(model=MODEL, input="hi") as stream:
            streamed = stream.get_final_response()
        message = _client(served).messages.create(model=MODEL, messages=HI, max_tokens=9)
        raw: httpx.Response = served.post(
            "/v1/messages", {"model": MODEL, "messages": HI, "max_tokens": 9, "stream": True}
        )
    assert chat.choices[0].message.content == ""
    assert response.output_text == streamed.output_text == ""
    assert [item.type for item in streamed.output] == ["message"]
    assert [block.type for block in message.content] == ["text"]
    assert raw.text.count("event: content_block_start") == 1
    assert raw.text.count("event: content_block_stop") == 1
