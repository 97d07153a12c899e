"""OpenAI's and Anthropic's own libraries, as their users use them, on a real server (checklist 182,
184). What a request means is tested elsewhere, and here only that the libraries get along with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import anthropic
import openai
import pytest

from benchmarks import tiny
from benchmarks.served import Server, serve

MODEL = tiny.NAME
HI = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = tiny.flags(tmp_path_factory.mktemp("tiny"), 1024)
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with serve(*flags, *tools, env={"VLLM_ENABLE_RESPONSES_API_STORE": "1"}) as server:
        yield server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def claude(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    """Checklist 182."""
    assert [model.id for model in client.models.list()] == [MODEL]


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    """Checklist 182."""
    ask = {"model": MODEL, "messages": HI, "max_tokens": 12, "seed": 1}
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    said = whole.choices[0].message.content
    assert said
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content) == 12
    text = ""
    with client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == said
    assert chunk.usage.completion_tokens == 12
    # The library takes an answer that was cut for an error.
    with client.chat.completions.stream(**ask, stop=said[-3:]) as stream:
        kinds = {event.type for event in stream}
        last = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert last.choices[0].finish_reason == "stop"
    assert said.startswith(last.choices[0].message.content)
    raw = client.chat.completions.with_raw_response.create(**ask)
    assert raw.http_response.status_code == 200
    assert raw.parse().choices[0].message.content == said


def test_completions(client: openai.OpenAI) -> None:
    """Checklist 182."""
    ask = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    prompts = ["One", "Two", "Three"]
    together = client.completions.create(prompt=prompts, **ask)
    alone = [client.completions.create(prompt=p, **ask).choices[0].text for p in prompts]
    assert [choice.text for choice in together.choices] == alone
    parts = client.completions.create(prompt="One", stream=True, **ask)
    assert "".join(part.choices[0].text for part in parts) == alone[0]
    ids = client.completions.create(prompt=[5, 6, 7], n=2, echo=True, logprobs=1, **ask)
    assert len(ids.choices) == 2


def test_responses(client: openai.OpenAI) -> None:
    """Checklist 182."""
    ask = {"model": MODEL, "max_output_tokens": 16}
    seed = {"seed": 1}
    first = client.responses.create(input="Say hello.", extra_body=seed, **ask)
    assert first.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    # The library takes an answer that was cut for an error.
    stop = {**seed, "stop": first.output_text[-3:]}
    with client.responses.stream(input="Say hello.", extra_body=stop, **ask) as stream:
        kinds = [event.type for event in stream]
        last = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") >= 1
    assert kinds[-1] == "response.completed"
    assert first.output_text.startswith(last.output_text)
    second = client.responses.create(input="Go on.", previous_response_id=first.id, **ask)
    assert second.usage.input_tokens > first.usage.input_tokens
    later = client.responses.create(input="Hi", background=True, **ask)
    assert later.status in ("queued", "in_progress")


def test_forced_calls_of_a_model_that_writes_noise(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    """Checklist 111: the arguments are valid in all three APIs, streamed and whole."""
    values = {"mood": ["good", "bad"], "score": [1, 2, 3]}
    properties = {name: {"enum": some} for name, some in values.items()}
    schema = {"type": "object", "properties": properties, "required": list(values)}
    function = {"name": "rate", "parameters": schema}
    ask = {"model": MODEL, "temperature": 1.5, "extra_body": {"seed": 7}}

    def check(arguments: str) -> None:
        told = json.loads(arguments)
        assert told.keys() == values.keys()
        assert all(told[name] in some for name, some in values.items())

    tools = [{"type": "function", "function": function}]
    chat = {**ask, "messages": HI, "tools": tools, "parallel_tool_calls": False}
    named = {"type": "function", "function": {"name": "rate"}}
    for choice, reason in (("required", "tool_calls"), (named, "stop")):
        whole = client.chat.completions.create(**chat, tool_choice=choice)
        [call] = whole.choices[0].message.tool_calls
        check(call.function.arguments)
        assert whole.choices[0].finish_reason == reason
        with client.chat.completions.stream(**chat, tool_choice=choice) as stream:
            [streamed] = stream.get_final_completion().choices[0].message.tool_calls
        assert streamed.function.arguments == call.function.arguments
    flat = [{"type": "function", **function}]
    answer = client.responses.create(
        input="Hi", tools=flat, tool_choice="required", parallel_tool_calls=False, **ask
    )
    check(answer.output[0].arguments)
    message = claude.messages.create(
        model=MODEL,
        messages=HI,
        max_tokens=200,
        tools=[{"name": "rate", "input_schema": schema}],
        tool_choice={"type": "tool", "name": "rate"},
    )
    check(json.dumps(message.content[0].input))


def test_several_at_once(server: Server) -> None:
    """Checklist 182: the asynchronous client."""

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0
        ) as client:

            async def one(streamed: bool) -> str:
                answer = await client.chat.completions.create(
                    model=MODEL, messages=HI, max_tokens=12, temperature=0, stream=streamed
                )
                if not streamed:
                    return answer.choices[0].message.content
                return "".join([c.choices[0].delta.content or "" async for c in answer])

            spoken = await client.responses.create(model=MODEL, input="Hi", max_output_tokens=16)
            assert spoken.output_text
            return await asyncio.gather(*(one(bool(i % 2)) for i in range(16)))

    answers = asyncio.run(ask())
    assert len(answers) == 16
    assert len(set(answers)) == 1


def test_errors_are_the_librarys_own(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """Checklist 184: an unknown model is a 404 with an error object, on every endpoint."""
    wrong = {"model": "nobody"}
    for call in (
        lambda: client.chat.completions.create(messages=HI, **wrong),
        lambda: client.completions.create(prompt="Hi", **wrong),
        lambda: client.responses.create(input="Hi", **wrong),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.status_code == 404
        assert caught.value.param == "model"
        assert "nobody" in caught.value.message
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        claude.messages.create(messages=HI, max_tokens=5, **wrong)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=HI, temperature=-1)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_of_nobody")


def test_anthropic(claude: anthropic.Anthropic, server: Server) -> None:
    # Some versions of the library have no argument for it.
    ask = {"model": MODEL, "messages": HI, "max_tokens": 12, "extra_body": {"temperature": 0}}
    whole = claude.messages.create(system="Be brief.", **ask)
    assert whole.content[0].text
    assert whole.usage.output_tokens == 12
    with claude.messages.stream(system="Be brief.", **ask) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == last.content[0].text == whole.content[0].text
    assert last.stop_reason == "max_tokens"
    counted = claude.messages.count_tokens(model=MODEL, messages=HI, system="Be brief.")
    used = whole.usage
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens

    async def later() -> str:
        client = anthropic.AsyncAnthropic(base_url=server.url, api_key="none")
        async with client, client.messages.stream(system="Be brief.", **ask) as stream:
            return "".join([part async for part in stream.text_stream])

    assert asyncio.run(later()) == text
