"""Structural tags: what their grammars accept, in both of vLLM's forms, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from galley.errors import InvalidRequest
from galley.structured.schema import SchemaOptions
from galley.structured.structural_tag import MalformedTag, guidance_grammar
from galley.structured.tag_tokens import numbered
from tests.structured.walks import Grammar, SpecialTokens

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


def _token(token: int | str) -> dict[str, Any]:
    return {"type": "token", "token": token}


_CALL = {"type": "tag", "begin": _token("<call>"), "content": _NUMBER, "end": _token("</call>")}
_TOKENS = SpecialTokens(["<call>", "</call>", "<other>"])
_TOKEN_TRIGGERED: dict[str, Any] = {
    "type": "token_triggered_tags",
    "trigger_tokens": ["<call>"],
    "tags": [_CALL],
    "exclude_tokens": ["<other>"],
}


@pytest.mark.parametrize(
    ("format_", "accepted", "refused"),
    [
        (_token("<call>"), ["<call>"], ["", "<other>", "<call><call>"]),
        (_CALL, ["<call>7</call>"], ["<call>x</call>", "<call>7"]),
        (
            _TOKEN_TRIGGERED,
            ["", "text", "a<call>7</call>b<call>8</call>"],
            ["<other>", "a<call>x</call>", "<call>7"],
        ),
        (
            {**_TOKEN_TRIGGERED, "at_least_one": True, "stop_after_first": True},
            ["<call>7</call>"],
            ["", "a<call>7</call>", "<call>7</call>b"],
        ),
        (
            {"type": "sequence", "elements": [_token("<other>"), {"type": "any_tokens"}]},
            ["<other>", "<other>text"],
            ["text", "<other><call>"],
        ),
    ],
)
def test_tokens(format_: dict[str, Any], accepted: list[str], refused: list[str]) -> None:
    """Given by their names or ids; what spells one is text."""
    tag = json.dumps({"type": "structural_tag", "format": format_})
    special = frozenset(_TOKENS.ids.values())
    by_id = numbered(tag, _TOKENS.ids.get, special, "response_format")
    assert numbered(by_id, _TOKENS.ids.get, special, "response_format") == by_id
    grammar = Grammar(json.dumps(guidance_grammar(json.loads(by_id), SchemaOptions())), _TOKENS)
    for text in accepted:
        assert grammar.accepts(text), text
        assert (
            not grammar.has_special(text)
            or not grammar.accepts(text, spell=True)
            or (format_["type"] == "token_triggered_tags" and "stop_after_first" not in format_)
        )
    for text in refused:
        assert not grammar.accepts(text), text
    assert grammar.accepts("<call>7", spell=True) == (format_ == _TOKEN_TRIGGERED)


@pytest.mark.parametrize("token", ["<none>", 65, True, None, [1]])
def test_tokens_that_are_no_special_ones_are_refused(token: Any) -> None:
    tag = json.dumps(
        {"type": "structural_tag", "format": {**_TOKEN_TRIGGERED, "trigger_tokens": [token]}}
    )
    with pytest.raises(InvalidRequest, match="not a special token") as caught:
        numbered(tag, _TOKENS.ids.get, frozenset(_TOKENS.ids.values()), "response_format")
    assert caught.value.field == "response_format"


def test_a_property_named_token_is_no_token() -> None:
    schema = {"type": "object", "properties": {"token": {"const": "x"}, "type": {"const": "token"}}}
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}}
    text = json.dumps(tag)
    assert json.loads(numbered(text, _TOKENS.ids.get, frozenset(), "x")) == tag


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
        ({"format": {"type": "exclude_token"}}, "$.format has the format 'exclude_token'"),
        ({"format": {**_ANY, "max_tokens": 0}}, "$.format.max_tokens is not supported"),
        ({"format": {**_JSON, "any_order": True}}, "$.format.any_order is not supported"),
        ({"format": {**_JSON, "excludes": ["x"]}}, "$.format.excludes"),
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
