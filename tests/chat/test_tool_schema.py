"""Constraints on answers with tools: what they accept is what the parsers read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from galley.chat.parsers import open_formats
from galley.chat.parts import ToolCall, assemble
from galley.chat.tool_parsers import CALL_SPELLINGS, TOOL_PARSERS
from galley.chat.tool_schema import schema_of, tag_of
from galley.chat.tools import FunctionTool, ToolChoice
from galley.structured.schema import SchemaOptions
from galley.structured.structural_tag import guidance_grammar
from tests.structured.walks import Grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"$ref": "#/$defs/days"},
        "units": {"enum": ["m", "ft"]},
    },
    "required": ["city", "days"],
    "$defs": {"days": {"type": "integer"}},
}
STRICT = FunctionTool("look", None, SCHEMA, strict=True)
LOOSE = FunctionTool("wait")
AUTO = ToolChoice("auto")
GOOD = {"city": "Paris", "days": 3}
BAD: list[dict[str, Any]] = [{"city": "Paris"}, {"city": "Paris", "days": "x"}]


def grammar_of(tag: dict[str, Any]) -> Grammar:
    return Grammar(json.dumps(guidance_grammar(tag, SchemaOptions())))


def spelt(name: str, arguments: dict[str, Any]) -> str:
    """A call of the function `look` in a format."""
    spelling = CALL_SPELLINGS[name]
    begin = spelling.tag("look", None)["begin"]
    end = spelling.tag("look", None)["end"]
    if name in ("mimo", "qwen3_coder", "qwen3_xml", "step3p5"):
        middle = "".join(
            f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items()
        )
    else:
        middle = json.dumps(arguments)
    return f"{begin}{middle}{end}"


@pytest.mark.parametrize("name", CALL_SPELLINGS)
def test_strict_calls_keep_to_their_schema_and_are_read(name: str) -> None:
    grammar = grammar_of(tag_of([STRICT, LOOSE], AUTO, CALL_SPELLINGS[name]))
    call = spelt(name, GOOD)
    assert grammar.accepts("Only text.")
    assert grammar.accepts(f"Text first. {call}")
    assert grammar.accepts(spelt(name, {**GOOD, "units": "ft"}))
    for arguments in BAD:
        assert not grammar.accepts(spelt(name, arguments)), arguments
    parser = open_formats("", name).parser("", [STRICT, LOOSE], AUTO)
    assert parser is not None
    [*_, read] = assemble([*parser.push(f"Text first. {call}", ()), *parser.finish()])
    assert isinstance(read, ToolCall)
    assert (read.name, json.loads(read.arguments)) == ("look", GOOD)


@pytest.mark.parametrize("name", [name for name, s in CALL_SPELLINGS.items() if s.marked])
def test_an_answer_is_a_call_or_json_of_a_schema(name: str) -> None:
    answer = {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}
    one = ToolChoice("auto", parallel=False)
    spelling = CALL_SPELLINGS[name]
    call = spelt(name, GOOD)
    two = f"{call}{spelling.separator}{call}"
    grammar = grammar_of(tag_of([STRICT], AUTO, spelling, answer))
    assert grammar.accepts('{"mood": "good"}')
    assert grammar.accepts(call)
    assert grammar.accepts(two)
    assert not grammar.accepts("Text.")
    assert not grammar_of(tag_of([STRICT], one, spelling, answer)).accepts(two)


def test_spellings_are_of_formats_that_exist() -> None:
    assert CALL_SPELLINGS.keys() <= TOOL_PARSERS.keys()


def test_forced_schemas() -> None:
    """References of a function's schema hold where it stands among others."""
    required = schema_of([STRICT, LOOSE], ToolChoice("required"))
    assert required is not None
    look = required["$defs"]["tool0"]
    assert look["properties"]["days"] == {"$ref": "#/$defs/tool0/$defs/days"}
    assert look["additionalProperties"] is False
    assert required["$defs"]["tool1"] == {"type": "object"}
    named = schema_of([STRICT, LOOSE], ToolChoice("named", "look"))
    assert named == {**SCHEMA, "additionalProperties": False}
    assert schema_of([STRICT], AUTO) is None
    recursive = FunctionTool("tree", None, {"properties": {"left": {"$ref": "#"}}})
    forced = schema_of([recursive], ToolChoice("required", parallel=False))
    assert forced is not None
    assert forced["maxItems"] == 1
    assert forced["$defs"]["tool0"]["properties"]["left"] == {"$ref": "#/$defs/tool0"}
