"""Parsers of assistants' output: the same parts wherever the text is cut."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galley.chat.parsers import PARSERS
from galley.chat.parts import (
    AssistantParser,
    Chain,
    Content,
    Part,
    Reasoning,
    ToolCall,
    assemble,
)
from galley.chat.think_tags import ThinkTags
from galley.request import SamplingParams
from tests.chat.call_tags import CallTags


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
            assert assemble(read(ThinkTags(prompt), pieces)) == want
    assert assemble(read(PARSERS["think_tags"](prompt), text)) == want


@given(st.text("<>/thinkabc ", max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_any_text_gives_the_same_parts_in_pieces_as_whole(text: str, cuts: list[int]) -> None:
    borders = sorted({0, *cuts, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    text = "".join(pieces)
    whole = assemble(read(ThinkTags(""), [text]))
    assert assemble(read(ThinkTags(""), pieces)) == whole
    said = "".join(block.text for block in whole if not isinstance(block, ToolCall))
    assert said == (re.sub(r"^\s*<think>(.*?)(</think>|$)", r"\1", text, count=1, flags=re.S))


def test_nothing_is_shown_that_may_belong_to_a_tag() -> None:
    parser = ThinkTags("")
    assert parser.push("<think>so </thi", ()) == [Reasoning("so ")]
    assert parser.push("s", ()) == [Reasoning("</this")]


def test_special_tokens_are_shown_to_the_parser() -> None:
    assert not ThinkTags("").adjust(SamplingParams()).skip_special_tokens


def test_tool_calls_come_after_reasoning() -> None:
    text = "<think>[not:a call]</think>So: [add:{1}][mul:{}] done"
    want = [
        Reasoning("[not:a call]"),
        Content("So: "),
        ToolCall("call_0", "add", "{1}"),
        ToolCall("call_1", "mul", "{}"),
        Content(" done"),
    ]
    for pieces in ([text], list(text), [text[:20], text[20:]]):
        assert assemble(read(Chain(ThinkTags(""), CallTags()), pieces)) == want
    assert not Chain(CallTags(), ThinkTags("")).adjust(SamplingParams()).skip_special_tokens
