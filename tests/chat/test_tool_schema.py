"""Constraints on answers with tools: what they accept is what the parsers read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from galley.chat.parsers import open_formats
from galley.chat.parts import ToolCall, assemble
from galley.chat.tool_parsers import TOOL_PARSERS
from galley.chat.tool_parsers.call_spellings import CALL_SPELLINGS
from galley.chat.tool_parsers.spelling import KEY, KIND, JsonSpelling, Signature, TaggedSpelling
from galley.chat.tool_schema import schema_of, tag_of
from galley.chat.tools import FunctionTool, ToolChoice
from galley.structured.schema import SchemaOptions
from galley.structured.structural_tag import guidance_grammar
from tests.structured.walks import Grammar, SpecialTokens

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
KINDS = {"city": "string", "days": "integer", "units": "string"}
GOOD = {"city": "Paris", "days": 3}
BAD: list[dict[str, Any]] = [{"city": "Paris"}, {"city": "Paris", "days": "x"}]


TRANSCRIPTS = [
    (line["parser"], line["text"])
    for line in map(json.loads, Path("tests/chat/transcripts.jsonl").read_text().splitlines())
]
#: Whose transcripts have calls without arguments in another form, or several answers.
OTHER_FORMS = {"deepseek_v4", "longcat", "openai"}
#: Markers that are special tokens in the vocabulary of their family.
_SPECIAL = re.compile(
    r"<\|[^<>|]+\|>|<\|tool_call>|<tool_call\|>|<\|\"\|>|<escape>|]<]minimax\[>\["
    r"|<｜[^<>｜]+｜>|\[(?:TOOL_CALLS|ARGS|CALL_ID)\]|</?tool_call>"
)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def grammar_of(tag: dict[str, Any], special: bool = False) -> Grammar:
    """Args: special: markers of `_SPECIAL` are tokens of their own."""
    names = {name for text in texts(tag) for name in _SPECIAL.findall(text)} if special else set()
    tokens = SpecialTokens(sorted(names))
    grammar = guidance_grammar(tag, SchemaOptions(), tokens.ids)
    return Grammar(json.dumps(grammar), tokens)


#: Text that a parser needs before a call, beside that of its grammar.
LEADS = {
    "gigachat3": "\n\nfunction call",
    "muse_glimmer": "<|start|>assistant to=look<|message|>",
}


def spelt(name: str, arguments: dict[str, Any]) -> str:
    """A call of the function `look` in a format."""
    spelling = CALL_SPELLINGS[name]
    [tag, *_] = [
        tag for tag in spelling.tags([Signature("look", None)], False) if "look" in json.dumps(tag)
    ]
    if isinstance(spelling, TaggedSpelling):
        kinds = dict(spelling.kinds)
        middle = "".join(
            f"{spelling.key_begin}{key}"
            f"{spelling.key_end.replace(KIND, kinds.get(KINDS[key], kinds.get('', '')))}"
            f"{value}{spelling.value_end.replace(KEY, key)}"
            for key, value in arguments.items()
        )
    elif isinstance(spelling, JsonSpelling) and spelling.style != "json":
        middle = in_style(spelling, arguments)
    else:
        middle = json.dumps(arguments)
    call = f"{tag['begin']}{_content(tag['content'], middle)}{tag['end']}"
    return LEADS.get(name, "") + call


def in_style(spelling: JsonSpelling, arguments: dict[str, Any]) -> str:
    """Arguments in the style of a spelling."""
    if spelling.style == "gemma":
        pairs = sorted(arguments.items())
        quotes = [spelling.quote if isinstance(value, str) else "" for _, value in pairs]
        return ",".join(f"{k}:{q}{v}{q}" for (k, v), q in zip(pairs, quotes, strict=True))
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())


def _content(content: dict[str, Any], arguments: str) -> str:
    """A text of a content that ends with the arguments."""
    kind = content["type"]
    if kind == "sequence":
        parts = content["elements"]
        if any(part["type"] == "json_schema" for part in parts):
            parts = [part for part in parts if part["type"] != "star"]
        return "".join(_content(part, arguments) for part in parts)
    if kind == "tags_with_separator":
        [tag] = content["tags"]
        return f"{tag['begin']}{_content(tag['content'], arguments)}{tag['end']}"
    if content.get("pattern") == "\n?":
        return ""
    return {"regex": "0", "const_string": content.get("value", "")}.get(kind, arguments)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", CALL_SPELLINGS)
def test_strict_calls_keep_to_their_schema_and_are_read(name: str, special: bool) -> None:
    """Whether the markers are text or special tokens."""
    grammar = grammar_of(tag_of([STRICT, LOOSE], AUTO, CALL_SPELLINGS[name]), special)
    call = spelt(name, GOOD)
    assert grammar.accepts("Only text.")
    text = "" if CALL_SPELLINGS[name].leading else "Text first. "
    assert grammar.accepts(f"{text}{call}")
    assert grammar.accepts(spelt(name, {**GOOD, "units": "ft"}))
    for arguments in BAD:
        assert not grammar.accepts(spelt(name, arguments)), arguments
        assert not text or not grammar.accepts(f"Text. {spelt(name, arguments)}"), arguments
    if grammar.has_special(call.removeprefix(LEADS.get(name, ""))):
        assert not grammar.accepts(call, spell=True)
    parser = open_formats("", name).parser("", [STRICT, LOOSE], AUTO)
    assert parser is not None
    [*_, read] = assemble([*parser.push(f"{text}{call}", ()), *parser.finish()])
    assert isinstance(read, ToolCall)
    assert (read.name, json.loads(read.arguments)) == ("look", GOOD)


@pytest.mark.parametrize("name", sorted(CALL_SPELLINGS.keys() - OTHER_FORMS))
def test_transcripts_of_models_are_what_their_grammar_accepts(name: str) -> None:
    """Calls in each model's own form, of functions without a schema that is kept."""
    tools = [FunctionTool("get_weather"), FunctionTool("now")]
    grammar = grammar_of(tag_of(tools, AUTO, CALL_SPELLINGS[name]), special=True)
    assert any(grammar.accepts(text) for parser, text in TRANSCRIPTS if parser == name)


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
