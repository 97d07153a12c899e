"""Parsers of assistants' output: the same parts wherever the text is cut."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galley.chat.parsers import OutputFormats
from galley.chat.parts import (
    AssistantParser,
    Content,
    Part,
    Reasoning,
    ToolCall,
    assemble,
)
from galley.chat.reasoning import REASONING_PARSERS
from galley.chat.tools import FunctionTool, ToolChoice
from galley.request import SamplingParams
from tests.chat.call_tags import FORMATS


def think_tags(prompt: str) -> AssistantParser:
    parser = OutputFormats(REASONING_PARSERS["think_tags"]).parser(prompt)
    assert parser is not None
    return parser


def read(parser: AssistantParser, pieces: Iterable[str]) -> list[Part]:
    parts = [part for piece in pieces for part in parser.push(piece, ())]
    return [*parts, *parser.finish()]


CASES = {
    "both": ("", "<think>why</think>\n\nyes", [Reasoning("why"), Content("\n\nyes")]),
    "spaces first": ("", " \n<think>why</think>yes", [Reasoning("why"), Content("yes")]),
    "no reasoning": ("", "yes <think>no</think>", [Content("yes <think>no</think>")]),
    "begun by the prompt": ("… <think>\n", "why</think>yes", [Reasoning("why"), Content("yes")]),
    "never ended": ("", "<think>why </thin", [Reasoning("why </thin")]),
    "never begun": ("", "<thi", [Content("<thi")]),
    "nothing between": ("", "<think></think>yes", [Content("yes")]),
    "tags inside": (
        "",
        "<think>a </b> <think> </think>c",
        [Reasoning("a </b> <think> "), Content("c")],
    ),
    "empty": ("", "", []),
}


@pytest.mark.parametrize("case", CASES)
def test_reasoning_is_found_wherever_the_text_is_cut(case: str) -> None:
    prompt, text, want = CASES[case]
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            pieces = (text[:first], text[first:second], text[second:])
            assert assemble(read(think_tags(prompt), pieces)) == want
    assert assemble(read(think_tags(prompt), text)) == want


@given(st.text("<>/thinkabc ", max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_any_text_gives_the_same_parts_in_pieces_as_whole(text: str, cuts: list[int]) -> None:
    borders = sorted({0, *cuts, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    text = "".join(pieces)
    whole = assemble(read(think_tags(""), [text]))
    assert assemble(read(think_tags(""), pieces)) == whole
    said = "".join(block.text for block in whole if not isinstance(block, ToolCall))
    assert said == (re.sub(r"^\s*<think>(.*?)(</think>|$)", r"\1", text, count=1, flags=re.S))


def test_nothing_is_shown_that_may_belong_to_a_tag() -> None:
    parser = think_tags("")
    assert parser.push("<think>so </thi", ()) == [Reasoning("so ")]
    assert parser.push("s", ()) == [Reasoning("</this")]


def test_special_tokens_are_shown_to_the_parser() -> None:
    assert not think_tags("").adjust(SamplingParams()).skip_special_tokens


def test_tool_calls_come_after_reasoning() -> None:
    text = "<think>[not:a call]</think>So: [add:{1}][mul:{}] done"
    want = [
        Reasoning("[not:a call]"),
        Content("So:"),
        ToolCall("call_0", "add", "{1}"),
        ToolCall("call_1", "mul", "{}"),
        Content("done"),
    ]
    for pieces in ([text], list(text), [text[:20], text[20:]]):
        parser = FORMATS.parser("", [FunctionTool("add")], ToolChoice("auto"))
        assert parser is not None
        assert assemble(read(parser, pieces)) == want
        hidden = FORMATS.parser("", [FunctionTool("add")], ToolChoice("auto"), reasoning=False)
        assert hidden is not None
        assert assemble(read(hidden, pieces)) == want[1:]
        assert not parser.adjust(SamplingParams()).skip_special_tokens


def test_only_the_first_call_is_passed_on_where_one_is_asked_for() -> None:
    parser = FORMATS.parser("", [FunctionTool("add")], ToolChoice("auto", parallel=False))
    assert parser is not None
    parts = assemble(read(parser, "a[add:{1}][mul:{}]b"))
    assert parts == [Content("a"), ToolCall("call_0", "add", "{1}"), Content("b")]
