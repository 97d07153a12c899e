"""Tools in requests: what reaches the template and the engine, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from galley.chat.custom_tools import InputReader
from galley.chat.parsers import OutputFormats, open_formats
from galley.chat.tool_parsers import TOOL_PARSERS
from galley.config.server import ServerConfig
from galley.text.markers import marker_of
from tests.server.served import LIMITS, MODEL, Served, reply_with, serve, tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}},
    "required": ["city"],
    "$defs": {"name": {"type": "string"}},
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
STRICT = {"type": "function", "function": {"name": "look", "parameters": SCHEMA, "strict": True}}
OTHER = {"type": "function", "function": {"name": "wait", "description": "do nothing"}}
FLAT = {"type": "function", "name": "look", "parameters": SCHEMA}
CLAUDE = {"name": "look", "input_schema": SCHEMA}
NAMED = {"type": "function", "function": {"name": "look"}}
HI = [{"role": "user", "content": "Paris?"}]
#: Shows what a template is given, as JSON.
TEMPLATE = "{{ [messages, tools, enable_thinking is defined and enable_thinking] | tojson }}"
SERVER = ServerConfig(
    enable_auto_tool_choice=True, tool_call_parser="hermes", reasoning_parser="deepseek_r1"
)
CALLS = '[{"name": "look", "parameters": {"city": "Paris"}}]'


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with serve(
        SERVER,
        script=reply_with(f"Hm.</think>{CALLS}"),
        formats=open_formats("deepseek_r1", "hermes"),
        chat_template=TEMPLATE,
        limits=replace(LIMITS, max_model_len=1024),
        store_responses=True,
    ) as served:
        yield served


def given(served: Served) -> tuple[list[dict[str, Any]], Any, Any]:
    """Messages, tools and `enable_thinking` of the last prompt."""
    ids = memoryview(served.engine.seen[-1].prompt_token_ids).cast("i").tolist()
    messages, tools, thinking = json.loads(tokenizer().decode(ids))
    return messages, tools, thinking


def chat(served: Served, **body: Any) -> dict[str, Any]:
    answer = served.post("/v1/chat/completions", {"model": MODEL, "messages": HI, **body})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()["choices"][0]
    return told


# ---------------------------------------------------------------------------- choices


def test_a_required_call_is_constrained_and_read(served: Served) -> None:
    """Checklist 111."""
    choice = chat(served, tools=[TOOL, OTHER], tool_choice="required")
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": '{"city": "Paris"}'}
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning"] == "Hm."
    request = served.engine.seen[-1]
    assert request.constraint is not None
    assert request.constraint.start_after == (marker_of(tokenizer(), "</think>"),)
    assert request.sampling.reasoning_limits.must_end
    text = request.constraint.text
    assert '"look"' in text
    assert '"wait"' in text


def test_a_named_call_is_its_arguments(served: Served) -> None:
    """Checklist 111."""
    choice = chat(served, tools=[TOOL, OTHER], tool_choice=NAMED)
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": CALLS}
    assert choice["finish_reason"] == "stop"
    schema = served.engine.seen[-1].constraint.text
    assert '"city"' in schema
    assert '"wait"' not in schema


def test_only_one_call_where_one_is_asked_for(served: Served) -> None:
    chat(served, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert '"maxItems": 1' in served.engine.seen[-1].constraint.text


def test_allowed_tools(served: Served) -> None:
    allowed = {"mode": "required", "tools": [NAMED]}
    chat(
        served,
        tools=[TOOL, OTHER],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
    )
    assert '"wait"' not in served.engine.seen[-1].constraint.text
    assert len(given(served)[1]) == 2


@pytest.mark.parametrize("choice", ["none", "auto", None])
def test_other_choices_constrain_nothing(served: Served, choice: str | None) -> None:
    answer = chat(served, tools=[TOOL], tool_choice=choice)
    assert answer["message"]["content"] == CALLS
    assert answer["finish_reason"] == "stop"
    assert served.engine.seen[-1].constraint is None
    assert given(served)[1] == [
        {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
    ]


def test_include_reasoning(served: Served) -> None:
    message = chat(served, include_reasoning=False)["message"]
    assert message["content"] == CALLS
    assert message["reasoning"] is None


def test_a_thinking_budget_reaches_the_engine(served: Served) -> None:
    chat(served, thinking_token_budget=7)
    limits = served.engine.seen[-1].sampling.reasoning_limits
    assert (limits.max_tokens, limits.begun, limits.must_end) == (7, True, False)
    body = {"model": MODEL, "messages": HI, "max_tokens": 9}
    thinking = {"type": "enabled", "budget_tokens": 5}
    assert served.post("/v1/messages", {**body, "thinking": thinking}).status_code == 200
    assert served.engine.seen[-1].sampling.reasoning_limits.max_tokens == 5
    assert given(served)[2] is True


def test_reasoning_effort_switches_thinking(served: Served) -> None:
    chat(served, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert given(served)[2] is True
    for effort, thinks in (("none", False), ("low", True)):
        chat(served, reasoning_effort=effort)
        assert given(served)[2] is thinks


def test_tokenize_takes_tools(served: Served) -> None:
    chat(served, tools=[TOOL])
    body = {"messages": HI, "tools": [TOOL]}
    seen = memoryview(served.engine.seen[-1].prompt_token_ids).cast("i").tolist()
    assert served.post("/tokenize", body).json()["tokens"] == seen


# ---------------------------------------------------------------------------- conversations

TALK = [
    {"role": "user", "content": "Paris?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "look", "arguments": {"city": "Paris"}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "Sunny."},
]
THOUGHT = {"reasoning_content": "Hm.", "reasoning": "Hm.", "thinking": "Hm."}


def test_chat_results_of_tools_reach_the_template(served: Served) -> None:
    call = {**TALK[1]["tool_calls"][0]}  # type: ignore[index]
    call["function"] = {"name": "look", "arguments": '{"city": "Paris"}'}
    chat(served, messages=[TALK[0], {**TALK[1], "tool_calls": [call]}, TALK[2]], tools=[TOOL])
    assert given(served)[0] == TALK


def test_responses_items_are_the_same_conversation(served: Served) -> None:
    items = [
        TALK[0],
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "x", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"city":"Paris"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "Sunny."},
    ]
    body = {"model": MODEL, "input": items, "tools": [FLAT]}
    answer = served.post("/v1/responses", body)
    assert answer.status_code == 200, answer.text
    assert given(served)[0] == [TALK[0], {**TALK[1], **THOUGHT}, TALK[2]]
    assert answer.json()["tools"][0]["name"] == "look"
    forced = {**body, "tool_choice": {"type": "function", "name": "look"}}
    told = served.post("/v1/responses", forced).json()
    assert [item["type"] for item in told["output"]] == ["reasoning", "function_call"]
    assert told["tool_choice"] == {"type": "function", "name": "look"}
    assert '"city"' in served.engine.seen[-1].constraint.text


PATCH = {"type": "custom", "name": "patch", "description": "Edit.", "format": {"type": "text"}}
SPACE = {"type": "namespace", "name": "map", "description": "", "tools": [FLAT]}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (r'{"input": "a\n\"b\" \ud83d\ude00 \\ud83d"}', 'a\n"b" 😀 \\ud83d'),
        ('{ "input":"a\nb"}', "a\nb"),
        ('{"input": "cut \\', "cut "),
        ('{"input": "\\ud83d!"}', "\ufffd!"),
        ('{"x": 1, "input": "a"}', "a"),
        ("a", "a"),
        ('{"x": 1}', '{"x": 1}'),
    ],
)
def test_the_input_of_a_custom_tool_in_pieces(arguments: str, text: str) -> None:
    reader = InputReader()
    pieces = [reader.push(character) for character in arguments]
    whole, rest = reader.finish()
    assert whole == "".join(pieces) + rest == text


def test_a_custom_tool(served: Served) -> None:
    """Calls and results are items of their own; the model has a function of one text."""
    served.engine.script = reply_with('Hm.</think>{"input": "*** a\\n"}')
    items = [
        TALK[0],
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": "--- b\n"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "Done."},
    ]
    body = {"model": MODEL, "input": items, "tools": [PATCH]}
    body["tool_choice"] = {"type": "custom", "name": "patch"}
    told = served.post("/v1/responses", body).json()
    call = told["output"][-1]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "patch", "*** a\n")
    messages, [tool], _ = given(served)
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"input": "--- b\n"}
    assert messages[2]["content"] == "Done."
    assert tool["function"]["parameters"]["required"] == ["input"]
    more = {**body, "input": [items[2]], "previous_response_id": told["id"]}
    assert served.post("/v1/responses", more).status_code == 200
    assert given(served)[0][-2]["tool_calls"][0]["function"]["arguments"] == {"input": "*** a\n"}
    events = list(served.client().responses.create(**{**body, "stream": True}))
    deltas = [e.delta for e in events if e.type == "response.custom_tool_call_input.delta"]
    [done] = [e for e in events if e.type == "response.custom_tool_call_input.done"]
    assert "".join(deltas) == done.input == "*** a\n"
    assert len(deltas) > 1


def test_a_namespace_of_functions(served: Served) -> None:
    body = {"model": MODEL, "input": "Paris?", "tools": [SPACE]}
    named = {**body, "tool_choice": {"type": "function", "name": "look"}}
    told = served.post("/v1/responses", named)
    call = told.json()["output"][-1]
    assert (call["namespace"], call["name"]) == ("map", "look")
    again = {"type": "function_call", "namespace": "map", "name": "look", "call_id": "c"}
    items = [TALK[0], {**again, "arguments": "{}"}]
    assert served.post("/v1/responses", {**body, "input": items}).status_code == 200
    messages, [tool], _ = given(served)
    assert messages[1]["tool_calls"][0]["function"]["name"] == "map__look"
    assert tool["function"]["name"] == "map__look"
    wrong = served.post("/v1/responses", {**named, "tools": [SPACE, {**SPACE, "name": "chart"}]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tool_choice")
    assert "map__look, chart__look" in wrong.json()["error"]["message"]


def test_a_stored_response_continues_with_its_calls(served: Served) -> None:
    body = {"model": MODEL, "input": "Paris?", "tools": [FLAT], "tool_choice": "required"}
    first = served.post("/v1/responses", body).json()
    call = first["output"][1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny."}
    more = {**body, "input": [result], "previous_response_id": first["id"]}
    assert served.post("/v1/responses", more).status_code == 200
    user, answer, tool = given(served)[0]
    assert user == HI[0]
    assert answer["tool_calls"][0]["function"] == TALK[1]["tool_calls"][0]["function"]  # type: ignore[index]
    assert answer["reasoning_content"] == "Hm."
    assert tool == {"role": "tool", "tool_call_id": call["call_id"], "content": "Sunny."}


def test_messages_blocks_are_the_same_conversation(served: Served) -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "c1", "name": "look", "input": {"city": "Paris"}},
    ]
    result = {"type": "tool_result", "tool_use_id": "c1"}
    talk = [
        {"role": "user", "content": "Paris?"},
        {"role": "assistant", "content": blocks},
        {
            "role": "user",
            "content": [
                {**result, "content": [{"type": "text", "text": "Sunny."}]},
                {"type": "text", "text": "Thanks."},
            ],
        },
    ]
    body = {"model": MODEL, "max_tokens": 99, "messages": talk, "tools": [CLAUDE]}
    answer = served.post("/v1/messages", {**body, "tool_choice": {"type": "any"}})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert [block["type"] for block in told["content"]] == ["thinking", "tool_use"]
    assert told["content"][1]["input"] == {"city": "Paris"}
    assert told["stop_reason"] == "tool_use"
    thanks = {"role": "user", "content": "Thanks."}
    assert given(served)[0] == [TALK[0], {**TALK[1], **THOUGHT}, TALK[2], thanks]
    counted = served.post("/v1/messages/count_tokens", {k: body[k] for k in ("model", "messages")})
    assert counted.json()["input_tokens"] < told["usage"]["input_tokens"]


# ---------------------------------------------------------------------------- refusals


def test_auto_needs_its_flags() -> None:
    with serve(formats=OutputFormats()) as served:
        for path, body in (
            ("/v1/chat/completions", {"messages": HI, "tools": [TOOL]}),
            ("/v1/responses", {"input": "hi", "tools": [FLAT]}),
            ("/v1/messages", {"messages": HI, "max_tokens": 5, "tools": [CLAUDE]}),
        ):
            answer = served.post(path, {"model": MODEL, **body})
            assert answer.status_code == 400
            message = answer.json()["error"]["message"]
            assert "requires --enable-auto-tool-choice and --tool-call-parser to be set" in message
        answer = served.post(
            "/v1/chat/completions", {"messages": HI, "thinking_token_budget": 5, "model": MODEL}
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "thinking_token_budget"


def test_tools_can_be_left_out_of_the_prompt() -> None:
    server = ServerConfig(exclude_tools_when_tool_choice_none=True)
    with serve(server, chat_template=TEMPLATE) as served:
        chat(served, tools=[TOOL], tool_choice="none")
        assert given(served)[1] is None


def test_a_schema_that_cannot_be_kept_is_refused(served: Served) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}
    body = {"model": MODEL, "messages": HI, "tools": [bad], "tool_choice": "required"}
    answer = served.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"


def test_strict_functions_constrain_calls_of_the_models_own_form(served: Served) -> None:
    chat(served, tools=[STRICT, OTHER])
    request = served.engine.seen[-1]
    assert request.constraint.kind == "structural_tag"
    assert "<tool_call>" in request.constraint.text
    assert "look" in request.constraint.text
    assert request.constraint.start_after


def test_an_answer_of_a_schema_may_be_a_call_instead(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "v", "schema": {"type": "object"}}}
    chat(served, tools=[TOOL], response_format=form)
    assert served.engine.seen[-1].constraint.kind == "structural_tag"
    chat(served, tools=[TOOL], tool_choice="none", response_format=form)
    assert served.engine.seen[-1].constraint.kind == "json"
    body = {"model": MODEL, "messages": HI, "tools": [TOOL]}
    broken = served.post("/v1/chat/completions", {**body, "structured_outputs": {"json": "{"}})
    assert broken.status_code == 400


def test_strict_functions_need_a_format_that_can_be_constrained() -> None:
    server = ServerConfig(enable_auto_tool_choice=True, tool_call_parser="own")
    own = OutputFormats(tools=TOOL_PARSERS["pythonic"])
    with serve(server, formats=own) as served:
        body = {"model": MODEL, "messages": HI, "tools": [STRICT]}
        answer = served.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
    assert "the tool call parser own" in answer.json()["error"]["message"]


def test_what_a_format_cannot_write_of_a_strict_function_is_refused() -> None:
    server = ServerConfig(enable_auto_tool_choice=True, tool_call_parser="gemma4")
    parameters = {"type": "object", "properties": {"day": {"type": "string", "format": "email"}}}
    function = {"name": "look", "parameters": parameters, "strict": True}
    with serve(server, formats=open_formats("", "gemma4")) as served:
        chat(served, tools=[STRICT])
        assert served.engine.seen[-1].constraint.kind == "structural_tag"
        tools = [{"type": "function", "function": function}]
        body = {"model": MODEL, "messages": HI, "tools": tools}
        answer = served.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
    assert "format" in answer.json()["error"]["message"]


def test_constraints_of_gpt_oss_apply_to_its_final_channel() -> None:
    server = ServerConfig(enable_auto_tool_choice=True, tool_call_parser="openai")
    form = {"type": "json_object"}
    with serve(server, formats=open_formats("", "openai")) as served:
        chat(served, tools=[TOOL], tool_choice="required")
        forced = served.engine.seen[-1]
        chat(served, tools=[TOOL], response_format=form)
        free = served.engine.seen[-1]
    end = marker_of(tokenizer(), "<|channel|>final<|message|>")
    for request, must_end in ((forced, True), (free, False)):
        assert request.constraint.start_after == (end,)
        assert request.sampling.reasoning_limits.must_end == must_end


def test_a_thinking_budget_of_gpt_oss_counts_its_analysis() -> None:
    server = ServerConfig(reasoning_parser="openai_gptoss")
    with serve(server, formats=open_formats("openai_gptoss")) as served:
        chat(served, thinking_token_budget=7)
        limits = served.engine.seen[-1].sampling.reasoning_limits
    names = ("<|channel|>analysis<|message|>", "<|end|>")
    assert limits.parts == tuple(marker_of(tokenizer(), name) for name in names)
    close = "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert limits.close == tuple(tokenizer().encode(close, False))


def test_answers_that_the_parser_reads_are_counted(served: Served) -> None:
    def count(outcome: str, mode: str, request_type: str) -> float:
        labels = f'outcome="{outcome}",mode="{mode}",request_type="{request_type}"'
        try:
            return served.metric(f"vllm:tool_call_parser_invocations_total{{{labels}}}")
        except KeyError:
            return 0.0

    kinds = [
        ("tool_call", "non_streaming", "chat_completions"),
        ("no_tool_call", "streaming", "chat_completions"),
        ("tool_call", "non_streaming", "other"),
        ("tool_call", "streaming", "responses"),
    ]
    before = [count(*kind) for kind in kinds]
    chat(served, tools=[TOOL], tool_choice="required", n=2)
    chat(served, tools=[TOOL], tool_choice="none")
    body = {"model": MODEL, "messages": HI, "tools": [TOOL], "stream": True}
    assert served.post("/v1/chat/completions", body).status_code == 200
    talk = {"model": MODEL, "messages": HI, "max_tokens": 99, "tools": [CLAUDE]}
    served.post("/v1/messages", {**talk, "tool_choice": {"type": "any"}})
    flat = {"model": MODEL, "input": "hi", "tools": [FLAT], "tool_choice": "required"}
    assert served.post("/v1/responses", {**flat, "stream": True}).status_code == 200
    after = [count(*kind) for kind in kinds]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1, 1, 1]
