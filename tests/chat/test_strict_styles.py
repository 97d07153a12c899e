"""Strict calls in formats that write values as Python does, or with marks around texts."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from galley.chat.parsers import open_formats
from galley.chat.parts import ToolCall, assemble
from galley.chat.tool_parsers.call_spellings import CALL_SPELLINGS
from galley.chat.tool_parsers.spelling import Signature
from galley.chat.tools import FunctionTool, ToolChoice
from galley.structured.schema import Refused, SchemaOptions
from galley.structured.structural_tag import MalformedTag, guidance_grammar
from tests.structured.walks import Grammar

PYTHON = ("pythonic", "llama4_pythonic", "lfm2", "olmo3")
GEMMA = ("gemma4", "functiongemma")
_TREE = {
    "type": "object",
    "properties": {"left": {"$ref": "#/$defs/tree"}, "v": {"type": "integer"}},
    "required": ["v"],
    "additionalProperties": False,
}
#: Schemas whose texts end by themselves, so that random bytes find their end in every style.
SCHEMAS: list[dict[str, Any]] = [
    {
        "properties": {
            "n": {"type": "integer", "minimum": 0},
            "ok": {"type": "boolean"},
            "code": {"type": "string", "pattern": "^[a-z]{1,4}$"},
        },
        "required": ["n", "code"],
        "additionalProperties": False,
    },
    {
        "properties": {
            "mode": {"enum": ["a'b", 'c"d', "e\\f", "ü\n", 5, None, True]},
            "x": {"type": "number"},
            "y": {"type": "number", "exclusiveMaximum": -0.5},
            "none": {"type": "null"},
        },
        "required": ["mode", "x"],
    },
    {
        "properties": {
            "list": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "boolean"}, {"type": "integer", "maximum": 9}],
                "items": False,
            },
            "most": {"type": "array", "items": {"const": "t"}, "maxItems": 1},
            "rest": {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}},
        },
        "required": ["list", "pair"],
    },
    {
        "properties": {
            "inner": {
                "type": "object",
                "properties": {"a": {"const": 1}, "b": {"type": "null"}},
                "required": ["b"],
                "additionalProperties": {"type": "integer"},
            },
            "either": {
                "anyOf": [
                    {"type": "integer", "multipleOf": 3},
                    {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                ]
            },
        },
        "required": ["inner"],
        "additionalProperties": False,
        "$defs": {"tree": _TREE},
    },
    {"patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
    {"additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2},
    {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "minProperties": 1},
]
TEXTS: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"},
        "short": {"type": "string", "minLength": 2, "maxLength": 5},
        "day": {"type": "string", "format": "date"},
        "any": {},
    },
    "required": ["text", "short"],
}


def typed(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", **schema}


def grammar_of(name: str, schema: dict[str, Any]) -> Grammar:
    """One call of `look` whose arguments keep to a schema."""
    tags = CALL_SPELLINGS[name].tags([Signature("look", schema)], True)
    some = {"separator": "", "at_least_one": True, "stop_after_first": True}
    form = {"type": "tags_with_separator", **some, "tags": tags}
    tag = {"type": "structural_tag", "format": form}
    return Grammar(json.dumps(guidance_grammar(tag, SchemaOptions())))


def read(name: str, text: str, schema: dict[str, Any]) -> Any:
    """The arguments that the parser finds in a text that is one call."""
    tool = FunctionTool("look", None, schema, strict=True)
    parser = open_formats("", name).parser("", [tool], ToolChoice("auto"))
    assert parser is not None
    [call] = assemble([*parser.push(text, ()), *parser.finish()])
    assert isinstance(call, ToolCall), text
    return json.loads(call.arguments)


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
@pytest.mark.parametrize("name", [*PYTHON, *GEMMA])
def test_what_the_grammar_lets_through_is_valid(name: str, number: int) -> None:
    schema = typed(SCHEMAS[number])
    grammar = grammar_of(name, schema)
    ended = 0
    for seed in range(8):
        text = grammar.walk(seed, closing="=\"']})")
        if text is not None:
            jsonschema.validate(read(name, text, schema), schema)
            ended += 1
    assert ended


@pytest.mark.parametrize("name", PYTHON)
def test_texts_as_python_writes_them(name: str) -> None:
    schema = typed(TEXTS)
    checker = jsonschema.FormatChecker()
    grammar = grammar_of(name, schema)
    ended = 0
    for seed in range(20):
        text = grammar.walk(seed, closing="=\"']})")
        if text is not None:
            jsonschema.validate(read(name, text, schema), schema, format_checker=checker)
            ended += 1
    assert ended


@pytest.mark.parametrize("name", GEMMA)
def test_texts_between_marks(name: str) -> None:
    """Whatever they are, but for the mark itself."""
    properties = {key: TEXTS["properties"][key] for key in ("text", "short")}
    schema = typed({"properties": properties, "required": ["short", "text"]})
    grammar, spelling = grammar_of(name, schema), CALL_SPELLINGS[name]
    [tag] = spelling.tags([Signature("look", schema)], True)
    quote = tag["content"]["quote"]
    for text in ("", "a", '"', "\\", "{x:1}\n", quote[:-1], f"é{quote[:3]}"):
        for short in ("ab", "}<x{", "a", "abcdef"):
            written = (
                f"{tag['begin']}short:{quote}{short}{quote},text:{quote}{text}{quote}{tag['end']}"
            )
            assert grammar.accepts(written) == (2 <= len(short) <= 5), written
            if grammar.accepts(written):
                assert read(name, written, schema) == {"short": short, "text": text}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"properties": {"a b": {}}}, "needs quotes"),
        ({"properties": {"day": {"type": "string", "format": "email"}}}, "format"),
    ],
)
def test_what_a_style_cannot_write_is_refused(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises((MalformedTag, Refused), match=reason):
        grammar_of("gemma4", typed(schema))
