"""Every format of reasoning: the same parts wherever the text is cut.

Texts are in the form of the families' chat templates (llama.cpp's `models/templates`, shipped in
the sdist of llama-cpp-python) and model cards.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galley.chat.parsers import open_formats
from galley.chat.parts import Block, Content, Reasoning, ToolCall, assemble
from galley.chat.reasoning import REASONING_PARSERS
from galley.chat.tools import FunctionTool, ToolChoice
from galley.request import SamplingParams

THINK = "<think>\nwhy é\n</think>\n\nyes"
THOUGHT = "\nwhy é\n"
#: Name → text, reasoning and content.
TEXTS = {
    "cohere_command3": (
        "<|START_THINKING|>why<|END_THINKING|><|START_RESPONSE|>yes<|END_RESPONSE|>",
        *("why", "yes"),
    ),
    "cohere_command4": (
        "<|START_THINKING|>why<|END_THINKING|><|START_TEXT|>yes<|END_TEXT|>",
        *("why", "yes"),
    ),
    "ernie45": ("\nwhy\n</think>\n\n<response>\nyes\n</response>\n", "\nwhy\n", "\n\n\nyes\n\n"),
    "gemma4": ("<|channel>thought\nwhy\n<channel|>yes", "why\n", "yes"),
    "granite": (
        "Here is my thought process: why\nHere is my response: yes",
        *(" why\n", " yes"),
    ),
    "granite_thinking_parser": ("<think>why</think><response>yes</response>", "why", "yes"),
    "hunyuan_a13b": ("<think>\nwhy\n</think>\n<answer>\nyes\n</answer>", "why", "yes"),
    "hy_v3": ("<think:opensource>why</think:opensource>yes", "why", "yes"),
    "hy_v4": ("<think:opensource>why</think:opensource>yes", "why", "yes"),
    "inkling": (
        "<|content_thinking|>why<|end_message|><|message_model|><|content_text|>yes<|end_message|>",
        *("why", "yes"),
    ),
    "k2_horizon": ("<ifm|think_fast>why</ifm|think_fast>yes", "why", "yes"),
    "kimi_k2": ("<think>why</think>yes", "why", "yes"),
    "kimi_k3": (
        "<|open|>think<|sep|>why<|close|>think<|sep|>"
        "<|open|>response<|sep|>yes<|close|>response<|sep|><|close|>message<|sep|>",
        *("why", "yes"),
    ),
    "minimax_m2_append_think": ("why\n</think>\n\nyes", "", "why\n</think>\n\nyes"),
    "minimax_m3": ("<mm:think>why</mm:think>yes", "why", "yes"),
    "mistral": ("[THINK]why[/THINK]yes", "why", "yes"),
    "muse_glimmer": (
        " to=self<|message|>why<|eom|><|start|>assistant to=user<|message|>yes<|eot|>",
        *("why", "yes"),
    ),
    "plamo3": ("why<|plamo:end_think:plamo|>yes<|plamo:tag|>", "why", "yes"),
    "openai_gptoss": (
        "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>yes",
        *("why", "yes"),
    ),
    "seed_oss": ("<seed:think>why</seed:think>yes", "why", "yes"),
}
NAMES = [*REASONING_PARSERS, "inkling", "muse_glimmer", "openai_gptoss"]


def read(name: str, text: str, prompt: str = "", *, chars: bool = False) -> list[Block]:
    parser = open_formats(name).parser(prompt)
    assert parser is not None
    parts = [part for piece in (text if chars else [text]) for part in parser.push(piece, ())]
    return assemble([*parts, *parser.finish()])


def joined(blocks: list[Block]) -> tuple[str, str]:
    """(reasoning, content)"""
    reasoning = "".join(block.text for block in blocks if isinstance(block, Reasoning))
    return reasoning, "".join(block.text for block in blocks if isinstance(block, Content))


@pytest.mark.parametrize("name", NAMES)
def test_reasoning_and_content_are_told_apart_at_every_border(name: str) -> None:
    text, *want = TEXTS.get(name, (THINK, THOUGHT, "\n\nyes"))
    whole = read(name, text)
    assert joined(whole) == tuple(want)
    assert read(name, text, chars=True) == whole
    for place in range(len(text)):
        parser = open_formats(name).parser("")
        assert parser is not None
        parts = parser.push(text[:place], ()) + parser.push(text[place:], ())
        assert assemble([*parts, *parser.finish()]) == whole


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tokens_of_reasoning_are_counted_alike_in_any_pieces(
    name: str, data: st.DataObject
) -> None:
    """Tokens of one byte each, so that all bytes of reasoning count."""
    text = TEXTS.get(name, (THINK,))[0]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parser = open_formats(name).parser("", width=lambda token_id: 1)
    assert parser is not None
    parts = []
    for begin, end in pairwise([0, *cuts, len(text)]):
        piece = text[begin:end]
        parts += parser.push(piece, piece.encode())
    parts += parser.finish()
    assert parser.reasoning_tokens == len(joined(assemble(parts))[0].encode())


def test_a_token_counts_where_it_begins() -> None:
    widths = {0: len("<think>"), 1: 3, 2: len("y</th"), 3: len("ink>yes"), 4: 0}
    parser = open_formats("qwen3").parser("", width=widths.__getitem__)
    assert parser is not None
    parser.push("<think>whyy</thi", (0, 1, 2))
    parser.push("nk>yes", (3, 4))
    parser.finish()
    assert parser.reasoning_tokens == 2


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_text_is_read_alike_in_any_pieces(name: str, data: st.DataObject) -> None:
    text = TEXTS.get(name, (THINK,))[0]
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    text = text[:begin] + text[end:] + text[begin:end]
    assert read(name, text, chars=True) == read(name, text)


@pytest.mark.parametrize("name", ["deepseek_r1", "minimax_m2", "olmo3", "step3", "step3p5"])
def test_an_answer_begins_inside_reasoning(name: str) -> None:
    assert joined(read(name, "why</think>yes")) == ("why", "yes")
    assert joined(read(name, "why")) == ("why", "")
    assert joined(read(name, "yes", "<assistant><think>\n\n</think>\n\n")) == ("", "yes")


def test_the_prompt_tells_where_an_answer_begins() -> None:
    assert joined(read("qwen3", "why</think>yes", "<|im_start|>assistant\n<think>\n")) == (
        "why",
        "yes",
    )
    assert joined(read("qwen3", "<think>", "<think>\n\n</think>\n\n")) == ("", "<think>")
    assert joined(read("minimax_m2_append_think", "why", "ai\n<think>\n")) == ("", "<think>why")


def test_a_tool_call_ends_the_reasoning_of_kimi() -> None:
    formats = open_formats("kimi_k2", "kimi_k2")
    parser = formats.parser("", [FunctionTool("now")], ToolChoice("auto"))
    assert parser is not None
    call = "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    text = f"<think>why<|tool_calls_section_begin|>{call}<|tool_calls_section_end|>"
    parts = [part for char in text for part in parser.push(char, ())]
    want = [Reasoning("why"), ToolCall("functions.now:0", "now", "{}")]
    assert assemble([*parts, *parser.finish()]) == want


@pytest.mark.parametrize("name", NAMES)
def test_markers_that_are_special_tokens_are_shown(name: str) -> None:
    parser = open_formats(name).parser("")
    assert parser is not None
    shown = not parser.adjust(SamplingParams()).skip_special_tokens
    assert shown == (name != "granite")
