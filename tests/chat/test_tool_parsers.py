"""Every format of tool calls: the same parts wherever the text is cut.

`transcripts.jsonl` holds one answer a format, as the family's own chat template renders it or its
model card shows it ("source"; the templates of llama.cpp are those in the sdist of
llama-cpp-python). All say the same: two calls, where the format has several.
"""

from __future__ import annotations

import codecs
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galley.chat.parsers import OutputFormats, open_formats
from galley.chat.parts import (
    AssistantParser,
    Block,
    Content,
    Part,
    Reasoning,
    ToolCall,
    ToolCallArguments,
    ToolCallStart,
    assemble,
)
from galley.chat.tool_parsers import CALL_IDS, TOOL_PARSERS
from galley.chat.tool_parsers.harmony import Harmony
from galley.chat.tools import FunctionTool, ToolChoice
from galley.errors import ConfigError
from galley.request import SamplingParams
from tests.server.served import tokenizer

ROWS = [json.loads(line) for line in (Path(__file__).parent / "transcripts.jsonl").open()]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"type": "array", "items": {"type": "string"}},
        "ok": {"type": "boolean"},
    },
}
TOOLS = [FunctionTool("get_weather", "Weather", SCHEMA), FunctionTool("now")]
ARGUMENTS = {"city": 'Zürich "x" <b>', "days": 3, "units": ["a", "b"], "ok": True}
#: Formats that have one call an answer.
SINGLE = ("gigachat3", "internlm")
NAMES = [f"{row['parser']}-{i}" for i, row in enumerate(ROWS)]


def parser_of(name: str) -> AssistantParser:
    formats = open_formats("", name)
    numbered = OutputFormats(formats.reasoning, formats.tools, lambda name, i: f"call_{i}")
    parser = numbered.parser("", TOOLS, ToolChoice("auto"))
    assert parser is not None
    return parser


def read(name: str, pieces: Iterable[str]) -> list[Block]:
    parser = parser_of(name)
    parts = [part for piece in pieces for part in parser.push(piece, ())]
    return assemble([*parts, *parser.finish()])


def cut(text: str, places: Iterable[int]) -> list[str]:
    """Pieces of a text that is cut at these bytes; half a character waits for its rest."""
    raw = text.encode()
    decode = codecs.getincrementaldecoder("utf-8")().decode
    borders = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [decode(raw[a:b]) for a, b in itertools.pairwise(borders)]


def test_every_parser_has_a_transcript() -> None:
    assert {row["parser"] for row in ROWS} == TOOL_PARSERS.keys()


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_transcript_gives_its_calls(row: dict[str, str]) -> None:
    blocks = read(row["parser"], [row["text"]])
    calls = [block for block in blocks if isinstance(block, ToolCall)]
    count = 1 if row["parser"] in SINGLE else 2
    assert [call.name for call in calls] == ["get_weather", "now"][:count]
    assert [json.loads(call.arguments) for call in calls] == [ARGUMENTS, {}][:count]
    said = [block.text for block in blocks if isinstance(block, Content)]
    if row["parser"] == "json":
        assert said == ["SAID ```json", "```"]
    else:
        assert said == (["SAID"] if "SAID" in row["text"] else [])
    thought = [block.text for block in blocks if isinstance(block, Reasoning)]
    assert thought == (["THOUGHT"] if "THOUGHT" in row["text"] else [])


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_the_parts_are_the_same_at_every_byte_and_token(row: dict[str, str]) -> None:
    name, text = row["parser"], row["text"]
    whole = read(name, [text])
    for place in range(len(text.encode())):
        assert read(name, cut(text, [place])) == whole
    assert read(name, text) == whole
    stream = tokenizer().stream([], SamplingParams(skip_special_tokens=False))
    pieces = [stream.push(token_id) for token_id in tokenizer().encode(text, False)]
    assert read(name, [*pieces, stream.finish()]) == whole


@pytest.mark.parametrize("name", TOOL_PARSERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_damaged_text_is_read_alike_in_any_pieces(name: str, data: st.DataObject) -> None:
    """Also what breaks off or misses a piece: no part depends on the borders."""
    text = data.draw(st.sampled_from([row["text"] for row in ROWS if row["parser"] == name]))
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    text = text[:begin] + data.draw(st.sampled_from(["", "{", '"', "<", "é🤗"])) + text[end:]
    places = data.draw(st.lists(st.integers(0, 10_000), max_size=8))
    whole = read(name, [text])
    assert read(name, cut(text, places)) == whole
    assert read(name, text) == whole


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_arguments_come_while_they_are_written(row: dict[str, str]) -> None:
    parser = parser_of(row["parser"])
    text = row["text"]
    parts: list[Part] = []
    for char in text[: text.index("days")]:
        parts += parser.push(char, ())
    told = "".join(part.text for part in parts if isinstance(part, ToolCallArguments))
    assert told.startswith('{"city": "Zürich')


PLAIN = {
    "hermes": "In HTML <tool_call> is no tag, nor is <tool_cal",
    "llama3_json": 'An object: {"name": "nobody", "parameters": {}} or {"a": [1]} or {',
    "pythonic": "[1, 2] is a list, and [now] too",
    "mistral": "the marker [TOOL_CALLS] alone, or [TOOL",
    "qwen3_coder": "a <function=> and </tool_call> and <tool_call> x",
    "glm45": "<tool_call> alone",
    "gemma4": "<|tool_call>dial:x{}",
    "openai": "no channel at all",
    "json": '{"type": "x", "name": 3} [] [[{"name": "now"',
}


@pytest.mark.parametrize("name", PLAIN)
def test_text_without_a_call_is_content(name: str) -> None:
    for pieces in ([PLAIN[name]], list(PLAIN[name])):
        assert read(name, pieces) == [Content(PLAIN[name])]


def test_only_what_may_be_a_marker_is_held_back() -> None:
    parser = parser_of("hermes")
    assert parser.push("a <tool", ()) == [Content("a")]
    assert parser.push("s> b", ()) == [Content(" <tools> b")]
    [start, *more] = parser.push('<tool_call>{"name": "now", "arguments": {"x": "a', ())
    assert start == ToolCallStart(0, "call_0", "now")
    assert "".join(part.text for part in more if isinstance(part, ToolCallArguments)) == '{"x": "a'
    assert parser.push("</tool_call>", ()) == [ToolCallArguments(0, "</tool_call>")]
    assert parser.push('"}}', ()) == [ToolCallArguments(0, '"'), ToolCallArguments(0, "}")]
    assert parser.push("</tool_call>\n", ()) == []


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"name": "now", "arguments": "{\\"a\\": \\"é\\"}"}', '{"a": "é"}'),
        ('{"arguments": {"a": 1}, "name": "now"}', '{"a": 1}'),
        ('{"name": "now"}', "{}"),
        ('{"name": "now", "arguments": null}', "{}"),
        ('{"type": "function", "function": {"name": "now", "arguments": {"a": 1}}}', '{"a": 1}'),
        ('{"id": "7", "name": "now", "arguments": {"a": 1}, "x": [{}]}', '{"a": 1}'),
        ('{"name": "now", "arguments": {"a": "}"}}', '{"a": "}"}'),
        ('{"name": "now", "arguments": {"a": 1}', '{"a": 1}'),
    ],
)
def test_spellings_of_a_json_call(text: str, arguments: str) -> None:
    for pieces in ([text], list(text)):
        want = ToolCall("call_0", "now", arguments)
        assert read("hermes", ["x<tool_call>", *pieces, "</tool_call>y"]) == [
            Content("x"),
            want,
            Content("y"),
        ]


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (r'"\ud83d\ude00 \ud83d"', "😀 \ufffd"),
        ("1e999", "1e999"),
        ("[1e999]", "[1e999]"),
        ("(1, None)", [1, None]),
    ],
)
def test_python_literals_become_json(literal: str, value: object) -> None:
    """Also those that JSON, or UTF-8, has no form for."""
    [call] = read("pythonic", [f"[now(x={literal})]"])
    assert isinstance(call, ToolCall)
    assert json.loads(call.arguments.encode()) == {"x": value}


def test_json_between_tags_may_have_the_closing_tag_in_a_text() -> None:
    value = ["</parameter>", "\n</parameter>\n</function>"]
    text = f"<function=now>\n<parameter=units>\n{json.dumps(value)}\n</parameter>\n</function>"
    for pieces in ([text], list(text)):
        [call] = read("qwen3_coder", ["<tool_call>\n", *pieces, "\n</tool_call>"])
        assert isinstance(call, ToolCall)
        assert json.loads(call.arguments) == {"units": value}


VALUES = {
    "string": ("12", '"12"'),
    "integer": ("12", "12"),
    "number": ("1.5", "1.5"),
    "boolean": ("True", "true"),
    "null": ("None", "null"),
    "array": ("['a', 1]", '["a", 1]'),
    "object": ('{"a": {"b": null}}', '{"a": {"b": null}}'),
}


@pytest.mark.parametrize("kind", VALUES)
def test_tagged_values_have_the_type_of_their_schema(kind: str) -> None:
    text, want = VALUES[kind]
    tool = FunctionTool("f", None, {"properties": {"v": {"type": kind}, "w": {"anyOf": []}}})
    parser = OutputFormats(tools=TOOL_PARSERS["qwen3_coder"]).parser("", [tool], ToolChoice("auto"))
    assert parser is not None
    written = f"<function=f>\n<parameter=v>\n{text}\n</parameter>\n</function>"
    [call] = assemble([*parser.push(written, ()), *parser.finish()])
    assert isinstance(call, ToolCall)
    assert call.arguments == f'{{"v": {want}}}'


@pytest.mark.parametrize(
    ("schema", "text", "want"),
    [
        ({"type": ["string", "null"]}, "null", "null"),
        ({"type": ["string", "null"]}, "nil", '"nil"'),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "12", "12"),
        ({"$ref": "#/$defs/n"}, "12", "12"),
        ({"enum": ["1", "2"]}, "1", '"1"'),
        ({"type": "integer"}, "3.0", "3"),
        ({"type": "integer"}, "many", '"many"'),
        ({}, "12", "12"),
        ({}, "a b", '"a b"'),
    ],
)
def test_tagged_values_of_several_types(schema: Any, text: str, want: str) -> None:
    parameters = {"properties": {"v": schema}, "$defs": {"n": {"type": "integer"}}}
    tool = FunctionTool("f", None, parameters)
    parser = OutputFormats(tools=TOOL_PARSERS["glm45"]).parser("", [tool], ToolChoice("auto"))
    assert parser is not None
    written = f"<tool_call>f\n<arg_key>v</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"
    [call] = assemble([*parser.push(written, ()), *parser.finish()])
    assert isinstance(call, ToolCall)
    assert call.arguments == f'{{"v": {want}}}'


def test_ids_have_the_form_that_templates_demand() -> None:
    assert CALL_IDS["kimi_k2"]("now", 3) == "functions.now:3"
    first, second = (CALL_IDS["mistral"]("now", 0) for _ in range(2))
    assert first != second
    assert len(first) == 9
    assert first.isalnum()


@pytest.mark.parametrize("mode", ["required", "named"])
def test_forced_calls_are_plain_json(mode: Any) -> None:
    choice = ToolChoice(mode, "now" if mode == "named" else None)
    parser = OutputFormats(new_id=lambda name, i: f"call_{i}").parser("", TOOLS, choice)
    assert parser is not None
    arguments = '{"a": [1, "]"]}'
    text = f'[{{"name": "now", "parameters": {arguments}}}]' if mode == "required" else arguments
    parts = [part for char in text for part in parser.push(char, ())]
    assert assemble([*parts, *parser.finish()]) == [ToolCall("call_0", "now", arguments)]


def test_unknown_names_and_broken_plugins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tool-call-parser nobody.*hermes, .*mistral"):
        open_formats("", "nobody")
    with pytest.raises(ConfigError, match=r"--reasoning-parser nobody.*deepseek_r1, .*qwen3"):
        open_formats("nobody")
    with pytest.raises(ConfigError, match="--tool-call-parser hf is not supported: the response"):
        open_formats("", "hf")
    with pytest.raises(ConfigError, match="--tool-parser-plugin"):
        open_formats("", "mine", {"tool_parser_plugin": str(tmp_path / "no.py")})
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="neither TOOL_PARSERS nor REASONING_PARSERS"):
        open_formats("", "mine", {"tool_parser_plugin": str(empty)})


@pytest.mark.parametrize("suffix", ["", ":6124c78e"])
def test_the_vocabulary_tells_how_markers_of_hunyuan_end(suffix: str) -> None:
    formats = open_formats("hy_v4", "hy_v4", tokens=["<s>", f"<tool_call{suffix}>"])
    parser = formats.parser("", TOOLS, ToolChoice("auto"))
    assert parser is not None
    text = next(row["text"] for row in ROWS if row["parser"] == "hy_v4")
    text = f"<think:opensource>THOUGHT</think:opensource>{text}".replace(":opensource", suffix)
    blocks = assemble([*parser.push(text, ()), *parser.finish()])
    assert [type(block) for block in blocks] == [Reasoning, Content, ToolCall, ToolCall]
    assert formats.spelling is not None
    assert formats.spelling.triggers == (f"<tool_call{suffix}>",)


def test_a_plugin_adds_formats(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from galley.chat.reasoning import TagReasoning\n"
        "from galley.chat.tool_parsers.json_calls import JsonCalls\n"
        "TOOL_PARSERS = {'mine': JsonCalls(('<<',), ('>>',))}\n"
        "REASONING_PARSERS = {'mine': TagReasoning(('((',), ('))',))}\n"
    )
    parser = open_formats("mine", "mine", {"tool_parser_plugin": str(file)}).parser(
        "", TOOLS, ToolChoice("auto")
    )
    assert parser is not None
    parts = parser.push('((why))<<{"name": "now"}>>', ())
    [reasoning, call] = assemble([*parts, *parser.finish()])
    assert reasoning == Reasoning("why")
    assert isinstance(call, ToolCall)
    assert call.name == "now"


@pytest.mark.parametrize("mode", ["required", "named"])
def test_forced_calls_of_gpt_oss_stand_in_the_final_channel(mode: Any) -> None:
    choice = ToolChoice(mode, "now" if mode == "named" else None)
    formats = open_formats("", "openai")
    parser = formats.parser("", TOOLS, choice)
    assert parser is not None
    text = '{"a": 1}' if mode == "named" else '[{"name": "now", "parameters": {"a": 1}}]'
    thought = f"{Harmony.start}why<|end|><|start|>assistant{Harmony.end}"
    parts = [part for char in thought + text for part in parser.push(char, ())]
    [reasoning, call] = assemble([*parts, *parser.finish()])
    assert reasoning == Reasoning("why")
    assert isinstance(call, ToolCall)
    assert (call.name, call.arguments) == ("now", '{"a": 1}')


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("json", "{"),
        ("json", '{"type":{"a":'),
        ("json", '{"name":"now","x":'),
        ("json", '{"function":'),
        ("hermes", '<tool_call>{"a":['),
        ("glm45", "<tool_call>a"),
        ("lfm2", "<|tool_call_start|>[now(a=("),
        ("mistral", '[TOOL_CALLS]{"name":"now","x":'),
        ("gemma4", "<|tool_call>call:a"),
        ("qwen3_coder", "<tool_call>\n<function=a"),
    ],
)
def test_work_grows_with_the_length_of_hostile_text(name: str, piece: str) -> None:
    """Counted in lines of the scanner that run: no attempt is repeated for each other one."""

    def lines(count: int) -> int:
        total = 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal total
            if not frame.f_code.co_filename.endswith("scanner.py"):
                return None
            total += event == "line"
            return trace

        sys.settrace(trace)
        try:
            read(name, [piece * count])
        finally:
            sys.settrace(None)
        return total

    assert lines(400) < 5 * lines(100)
