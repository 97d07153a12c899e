"""/v1/messages through the real `anthropic` client."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from galley.config.server import ServerConfig
from tests.server.served import LIMITS, MODEL, REPLY, Served, serve, tokenizer
from tests.server.test_disconnect import send, wait_for

HI: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TURN = "<|im_start|>{role}\n{text}<|im_end|>\n"


def client(served: Served, **options: Any) -> anthropic.Anthropic:
    options = {"api_key": "none", "max_retries": 0, "timeout": 30, **options}
    return anthropic.Anthropic(base_url=served.url, **options)


def ask(served: Served, **options: Any) -> Any:
    options = {"model": MODEL, "messages": HI, "max_tokens": 64, **options}
    return client(served).messages.create(**options)


def seen(served: Served) -> str:
    ids = memoryview(served.engine.seen[-1].prompt_token_ids).cast("i").tolist()
    return tokenizer().decode(ids, False)


def test_whole_answer(served: Served) -> None:
    message = ask(served)
    assert message.id.startswith("msg-")
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    [block] = message.content
    assert (block.type, block.text) == ("text", REPLY)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == len(tokenizer().encode(REPLY, False)) + 1
    assert message.usage.input_tokens == len(served.engine.seen[0].prompt_token_ids) // 4


def test_why_it_stopped(served: Served) -> None:
    assert ask(served, max_tokens=3).stop_reason == "max_tokens"
    stopped = ask(served, stop_sequences=["Paris"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    assert stopped.content[0].text == REPLY.partition("Paris")[0]


def test_input_tokens_leave_out_cached_ones(served: Served) -> None:
    """HTTP behaviour 10: prompt = input + cache created + cache read."""
    long = [{"role": "user", "content": "word " * 40}]
    first, second = ask(served, messages=long).usage, ask(served, messages=long).usage
    assert first.cache_read_input_tokens == 0
    assert second.cache_read_input_tokens > 0
    total = second.input_tokens + second.cache_read_input_tokens
    assert total + second.cache_creation_input_tokens == first.input_tokens


def test_the_conversation_becomes_the_prompt(served: Served) -> None:
    blocks = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]
    ask(
        served,
        system=blocks,
        messages=[
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            {"role": "user", "content": "c"},
        ],
    )
    turns = [("system", "Be\nbrief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    expected = "".join(TURN.format(role=r, text=t) for r, t in turns)
    assert seen(served) == expected + "<|im_start|>assistant\n"


def test_a_last_turn_of_the_assistant_is_continued(served: Served) -> None:
    ask(served, messages=[*HI, {"role": "assistant", "content": "It is"}])
    assert seen(served).endswith("<|im_start|>assistant\nIt is")


def test_streamed(served: Served) -> None:
    with client(served).messages.stream(model=MODEL, messages=HI, max_tokens=64) as stream:
        events = list(stream)
        final = stream.get_final_message()
    kinds = [e.type for e in events if e.type != "text"]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert deltas > 5
    whole = ask(served)
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_raw_stream(served: Served) -> None:
    body = {"model": MODEL, "messages": HI, "max_tokens": 2, "stream": True}
    lines = served.post("/v1/messages", body).text.split("\n\n")
    assert lines.pop() == ""
    for block in lines:
        name, data = block.split("\n")
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")
    assert json.loads(lines[-2].split("data: ")[1])["delta"]["stop_reason"] == "max_tokens"


def test_count_tokens(served: Served) -> None:
    count = client(served).messages.count_tokens(model=MODEL, messages=HI, system="Be brief.")
    assert count.input_tokens == ask(served, system="Be brief.").usage.input_tokens


def test_a_disconnect_aborts(served: Served) -> None:
    served.engine.script = lambda request: [5] * 200
    served.engine.pause = 0.3
    sock = send(served, "/v1/messages", {"messages": HI, "max_tokens": 100, "stream": True})
    wait_for(lambda: len(served.engine.seen) == 1)
    sock.close()
    wait_for(lambda: len(served.engine.aborted) == 1)


@pytest.mark.parametrize(
    ("change", "status", "kind", "words"),
    [
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
        ({"model": "other"}, 404, "not_found_error", "other"),
        ({"messages": [{"role": "judge", "content": "x"}]}, 400, "invalid_request_error", "role"),
        ({"thinking": {"type": "maybe"}}, 400, "invalid_request_error", "thinking"),
        ({"tools": [{"name": "f"}]}, 400, "invalid_request_error", "--tool-call-parser"),
        ({"tools": [{"input_schema": {}}]}, 400, "invalid_request_error", "tools[0].name"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tools"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            *(400, "invalid_request_error", "tool_use_id"),
        ),
        ({"stop_sequences": ["a"] * 5}, 400, "invalid_request_error", "stop"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            *(400, "invalid_request_error", "image"),
        ),
        (
            {"messages": [{"role": "user", "content": "x " * LIMITS.max_model_len}]},
            *(400, "invalid_request_error", "maximum context length"),
        ),
    ],
)
def test_errors_have_anthropics_shape(
    served: Served, change: dict[str, Any], status: int, kind: str, words: str
) -> None:
    body = {"model": MODEL, "messages": HI, "max_tokens": 8, **change}
    answer = served.post("/v1/messages", body)
    assert answer.status_code == status
    error = answer.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == kind
    assert words in error["error"]["message"]


def test_failures_of_the_engine(served: Served) -> None:
    served.engine.down = "there is no engine"
    answer = served.post("/v1/messages", {"model": MODEL, "messages": HI, "max_tokens": 8})
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "overloaded_error"
    served.engine.down = None
    served.engine.failure = "it broke"
    with pytest.raises(anthropic.InternalServerError, match="it broke"):
        ask(served, stream=True)


def test_a_key_in_the_clients_own_header() -> None:
    with serve(ServerConfig(api_key=("secret",))) as served:
        assert ask_with(served, api_key="secret").content[0].text == REPLY
        assert ask_with(served, api_key=None, auth_token="secret").content[0].text == REPLY
        with pytest.raises(anthropic.AuthenticationError):
            ask_with(served, api_key="wrong")


def ask_with(served: Served, **options: Any) -> Any:
    own = client(served, **options)
    return own.messages.create(model=MODEL, messages=HI, max_tokens=64)
