"""Structural tags: what their grammars accept, in both of vLLM's forms, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from galley.structured.schema import SchemaOptions
from galley.structured.structural_tag import MalformedTag, guidance_grammar
from tests.structured.walks import Grammar

_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def _grammar(tag: dict[str, Any]) -> Grammar:
    return Grammar(json.dumps(guidance_grammar(tag, SchemaOptions())))


def _of(format_: dict[str, Any]) -> Grammar:
    return _grammar({"type": "structural_tag", "format": format_})


def _const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def _tag(name: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tag", "begin": f"<{name}>", "content": content, "end": f"</{name}>"}


_ANY = {"type": "any_text"}
_JSON = {"type": "json_schema", "json_schema": _CITY}
_NUMBER = {"type": "regex", "pattern": "[0-9]{1,3}"}
_TWO_TAGS = [_tag("f=city", _JSON), _tag("f=number", _NUMBER)]


def test_the_older_form() -> None:
    grammar = _grammar(
        {
            "type": "structural_tag",
            "structures": [
                {"begin": "<function=a>", "schema": _CITY, "end": "</function>"},
                {"begin": "<function=b>", "schema": {"type": "integer"}, "end": "</function>"},
            ],
            "triggers": ["<function="],
            "format": None,
        }
    )
    for text in (
        "",
        "free < text <functio",
        'well <function=a>{"city":"Rom"}</function> and <function=b>7</function>.',
        "<function=b>7</function>",
    ):
        assert grammar.accepts(text), text
    for text in (
        "<function=",
        "<function=c>7</function>",
        '<function=b>"x"</function>',
        "<function=b>7</function> <function=a>7</function>",
        "<function=b>7",
    ):
        assert not grammar.accepts(text), text


_TRIGGERED = {"type": "triggered_tags", "triggers": ["<f="], "tags": _TWO_TAGS}


@pytest.mark.parametrize(
    ("format_", "accepted", "refused"),
    [
        (_const('a\n"é🤗'), ['a\n"é🤗'], ["", "a"]),
        (_NUMBER, ["1", "123"], ["", "1234", "x"]),
        ({"type": "grammar", "grammar": 'root ::= "a" root | "b"'}, ["b", "aab"], ["a", ""]),
        ({"type": "grammar", "grammar": 'start: "a" x\nx: "b"*'}, ["a", "abb"], ["b"]),
        (_JSON, ['{"city":"x"}', '{ "city": "x"}'], ["{}"]),
        (_ANY, ["", "anything < at\nall"], []),
        ({"type": "any_text", "excludes": ["<x>"]}, ["", "< x>", "<x"], ["a<x>b"]),
        (
            {"type": "sequence", "elements": [_const("<think>"), _NUMBER, _const("."), _ANY]},
            ["<think>12.", "<think>12.free"],
            ["<think>x", "12"],
        ),
        ({"type": "or", "elements": [_const("yes"), _NUMBER]}, ["yes", "5"], ["no", ""]),
        (
            {"type": "or", "elements": [_tag("a", _NUMBER), _tag("b", _ANY)]},
            ["<a>1</a>", "<b>x < y</b>"],
            ["<a>x</a>", "<b>x", "<b>x</b>y"],
        ),
        (
            {"type": "sequence", "elements": [_tag("think", _ANY), _tag("n", _NUMBER)]},
            ["<think></think><n>1</n>", "<think>a</thin</think><n>12</n>"],
            ["<think>a<n>1</n>", "<n>1</n>"],
        ),
        (
            {**_tag("a", _NUMBER), "end": ["</a>", "!"]},
            ["<a>1</a>", "<a>1!"],
            ["<a>1", "<a>1</a>!"],
        ),
        (
            {"type": "optional", "content": _const("ab")},
            ["", "ab"],
            ["abab", "a"],
        ),
        ({"type": "plus", "content": _const("ab")}, ["ab", "abab"], ["", "aba"]),
        ({"type": "star", "content": _const("ab")}, ["", "abab"], ["aba"]),
        (
            {"type": "repeat", "content": _const("ab"), "min": 1, "max": 2},
            ["ab", "abab"],
            ["", "ababab"],
        ),
        (
            _TRIGGERED,
            ["", "text", 'a<f=city>{"city":""}</f=city>b<f=number>7</f=number>c'],
            ["<f=other>", "<f=number>x</f=number>", "<f=number>7"],
        ),
        (
            {**_TRIGGERED, "at_least_one": True},
            ["<f=number>7</f=number>", "<f=number>7</f=number> text <f=number>8</f=number>"],
            ["", "text", "text <f=number>7</f=number>"],
        ),
        (
            {**_TRIGGERED, "stop_after_first": True},
            ["", "text", "text <f=number>7</f=number>"],
            ["<f=number>7</f=number> text", "<f=number>7</f=number><f=number>7</f=number>"],
        ),
        (
            {**_TRIGGERED, "stop_after_first": True, "at_least_one": True},
            ["<f=number>7</f=number>"],
            ["", "text <f=number>7</f=number>", "<f=number>7</f=number> "],
        ),
        (
            _tag("all", _TRIGGERED),
            ["<all></all>", "<all>x<f=number>7</f=number>y</all>"],
            ["<all>x", "<all>x</all>y", "<all><f=number>x</f=number></all>"],
        ),
        (
            {"type": "tags_with_separator", "tags": _TWO_TAGS, "separator": ","},
            ["", "<f=number>7</f=number>", "<f=number>7</f=number>,<f=number>8</f=number>"],
            ["<f=number>7</f=number><f=number>8</f=number>", ","],
        ),
        (
            {
                "type": "tags_with_separator",
                "tags": _TWO_TAGS,
                "separator": ", ",
                "at_least_one": True,
                "stop_after_first": True,
            },
            ["<f=number>7</f=number>"],
            ["", "<f=number>7</f=number>, <f=number>8</f=number>"],
        ),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else "",
)
def test_formats(format_: dict[str, Any], accepted: list[str], refused: list[str]) -> None:
    grammar = _of(format_)
    for text in accepted:
        assert grammar.accepts(text), text
    for text in refused:
        assert not grammar.accepts(text), text


def test_options_of_json_reach_the_schemas() -> None:
    grammar = guidance_grammar(
        {"type": "structural_tag", "format": _JSON}, SchemaOptions(any_whitespace=False)
    )
    compact = Grammar(json.dumps(grammar))
    assert compact.accepts('{"city":"x"}')
    assert not compact.accepts('{"city": "x"}')


@pytest.mark.parametrize(
    ("tag", "place"),
    [
        ([], "$ "),
        ({"type": "other"}, "$ "),
        ({"type": "structural_tag"}, "$ "),
        ({"format": {"type": "token", "token": 5}}, "$.format has the format 'token'"),
        ({"format": _const(7)}, "$.format.value"),  # type: ignore[arg-type]
        ({"format": {"type": "regex", "pattern": "(?<=a)b"}}, "$.format.pattern uses a lookbehind"),
        (
            {"format": {"type": "json_schema", "json_schema": {"$ref": "http://x/y"}}},
            "$.format.json_schema",
        ),
        ({"format": {"type": "json_schema", "style": "qwen_xml"}}, "$.format.style"),
        ({"format": {"type": "sequence", "elements": [_ANY, _ANY]}}, "$.format.elements[0]"),
        ({"format": {"type": "plus", "content": _ANY}}, "$.format.content"),
        ({"format": {**_tag("a", _ANY), "end": ""}}, "$.format.end"),
        ({"format": {**_TRIGGERED, "triggers": ["<g"]}}, "$.format.tags[0].begin"),
        ({"format": {**_TRIGGERED, "triggers": []}}, "$.format.triggers"),
        ({"structures": [], "triggers": ["a"]}, "$.tags"),
    ],
)
def test_refusals_say_where(tag: Any, place: str) -> None:
    with pytest.raises(MalformedTag) as info:
        guidance_grammar(tag, SchemaOptions())
    assert place in str(info.value)
