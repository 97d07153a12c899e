"""Structured output over HTTP, with the engine and real clients: every form of asking for it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from tests.structured.tiny import write_tiny

ASK: Any = [{"role": "user", "content": "a, b and c"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": [1, 2, 3]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
WRONG = {"type": "json_schema", "name": "x", "schema": {"type": 5}}
MORE: Any = {"temperature": 1.0, "seed": 3}


class Fruit(BaseModel):
    name: str = Field(max_length=8)
    colour: Literal["red", "green"]
    sizes: list[bool] = Field(max_length=3)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server with the tiny model."""
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    flags = "--load-format dummy --port 0 --host 127.0.0.1 --kv-cache-memory-bytes 16m"
    template = folder / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    command = [sys.executable, "-m", "galley", "serve", str(folder), *flags.split()]
    command += ["--served-model-name", "tiny", "--chat-template", str(template)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if found := re.search(r"serving at http://127.0.0.1:(\d+)", line):
            break
    else:
        pytest.fail("".join(lines))
    yield int(found[1])
    child.send_signal(signal.SIGTERM)
    child.communicate()


@pytest.fixture(scope="module")
def client(port: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)


def assert_fits(text: str | None) -> None:
    value = json.loads(text or "")
    assert value.keys() == {"name", "size"}
    assert len(value["name"]) <= 8
    assert value["size"] in (1, 2, 3)


def test_chat_formats(client: openai.OpenAI) -> None:
    named: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for format in (named, {**named, "json_schema": {**named["json_schema"], "strict": True}}):
        answer = client.chat.completions.create(
            model="tiny", messages=ASK, response_format=format, max_tokens=400, **MORE
        )
        assert answer.choices[0].finish_reason == "stop"
        assert_fits(answer.choices[0].message.content)
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, response_format={"type": "json_object"}, max_tokens=900
    )
    content = answer.choices[0].message.content or ""
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)
    else:
        assert content.lstrip().startswith("{")


def test_a_stream_gives_the_same_text(client: openai.OpenAI) -> None:
    format: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    common: Any = {
        "model": "tiny",
        "messages": ASK,
        "response_format": format,
        "max_tokens": 400,
        **MORE,
    }
    whole = client.chat.completions.create(**common, n=2)
    parts = ["", ""]
    for chunk in client.chat.completions.create(**common, n=2, stream=True):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert parts == [choice.message.content for choice in whole.choices]
    for text in parts:
        assert_fits(text)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"grammar": 'root ::= "x" [0-9] "y"'}}, "x[0-9]y"),
        ({"structured_outputs": {"json": {"enum": [5]}}}, "5"),
        ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_grammar": 'start: "x" /[0-9]/'}, "x[0-9]"),
        ({"guided_json": {"const": "a b"}, "guided_decoding_backend": "xgrammar"}, '"a b"'),
        ({"structured_outputs": {"json": {"type": "array", "items": False}}}, r"\[\s*\]"),
        (
            {
                "structured_outputs": {
                    "json": {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2},
                    "whitespace_pattern": " ",
                }
            },
            r"\[ ?1 ?, ?1 ?\]",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_vllm_s_own_fields(client: openai.OpenAI, fields: dict[str, Any], pattern: str) -> None:
    answer = client.completions.create(
        model="tiny", prompt="a", max_tokens=100, extra_body=fields, **MORE
    )
    assert answer.choices[0].finish_reason == "stop"
    assert re.fullmatch(pattern, answer.choices[0].text)


def test_beams_keep_to_a_constraint(port: int) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 20, "n": 2, "use_beam_search": True}
    form = {"structured_outputs": {"choice": ["yes", "no"]}}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={**body, **form})
    assert answer.status_code == 200, answer.text
    assert {choice["text"] for choice in answer.json()["choices"]} <= {"yes", "no"}
    broken = {"structured_outputs": {"regex": "(("}}
    refused = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={**body, **broken})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "structured_outputs")


def test_pydantic_models_are_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=ASK, response_format=Fruit, max_tokens=500, **MORE
    )
    assert isinstance(answer.choices[0].message.parsed, Fruit)
    response = client.responses.parse(
        model="tiny", input="a, b and c", text_format=Fruit, max_output_tokens=500, temperature=1.0
    )
    assert isinstance(response.output_parsed, Fruit)


def test_responses_and_messages(client: openai.OpenAI, port: int) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    response = client.responses.create(
        model="tiny", input="a", text=text, max_output_tokens=400, temperature=1.0
    )
    assert_fits(response.output_text)
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    theirs = anthropic.Anthropic(base_url=f"http://127.0.0.1:{port}", api_key="x", max_retries=0)
    message = theirs.messages.create(
        model="tiny",
        max_tokens=400,
        messages=[{"role": "user", "content": "a"}],
        extra_body={
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            "temperature": 1.0,
        },
    )
    assert message.stop_reason == "end_turn"
    block: Any = message.content[0]
    assert_fits(block.text)


@pytest.mark.parametrize(
    ("path", "body", "field", "said"),
    [
        (
            "completions",
            {"prompt": "a", "structured_outputs": {"regex": "(("}},
            *("structured_outputs", "structured_outputs.regex"),
        ),
        (
            "completions",
            {"prompt": "a", "guided_json": "{"},
            *("guided_json", "guided_json is not valid JSON"),
        ),
        (
            "chat/completions",
            {
                "messages": ASK,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"enum": ["a" * 5_000_000]}},
                },
            },
            *("response_format", "response_format.json_schema.schema has"),
        ),
        (
            "chat/completions",
            {"messages": ASK, "response_format": {"type": "structural_tag", "format": {}}},
            *("response_format", "response_format: $.format has the format"),
        ),
        (
            "responses",
            {
                "input": "a",
                "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 5}}},
            },
            *("text", "type"),
        ),
    ],
)
def test_what_cannot_be_compiled_is_a_400(
    port: int, path: str, body: dict[str, Any], field: str, said: str
) -> None:
    """The error names the field that the client has sent."""
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/{path}", json={"model": "tiny", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert said in error["message"]


def test_parked_requests_are_counted(port: int) -> None:
    """The metric that vLLM has for requests that wait for their grammar."""
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert re.search(r'num_requests_waiting_by_reason\{.*reason="deferred".*\} 0', metrics)
