"""The neutral form of an assistant's output, and the interface of its parsers.

    model's text ──▶ AssistantParser ──▶ Reasoning | Content | ToolCallStart | ToolCallArguments
                     (one a choice)        │
                                           ▼
                        chat, Responses and Anthropic answers, streamed and whole

A parser knows the format of a model family and no API; an API's answer knows parts and no format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from galley.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Text of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins; `index` counts the calls of a choice from 0. Calls do not interleave."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the arguments' JSON text of the call `index`, which is the one that began last."""

    index: int
    text: str


Part = Reasoning | Content | ToolCallStart | ToolCallArguments


class AssistantParser(Protocol):
    """Splits the text of one choice into parts, at any border of tokens or characters.

    Attributes:
        reasoning_tokens: tokens of the reasoning that has been read.
    """

    @property
    def reasoning_tokens(self) -> int: ...

    def adjust(self, params: SamplingParams) -> SamplingParams:
        """Parameters under which the model's text can be parsed."""
        ...

    def push(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        """Parts that are complete with the next piece of text; `token_ids` are its tokens."""
        ...

    def finish(self) -> list[Part]:
        """Parts that were held back, at the end of the text."""
        ...


class Chain:
    """Two parsers: the second reads what is content for the first (tool calls after reasoning)."""

    def __init__(self, first: AssistantParser, second: AssistantParser) -> None:
        self._first = first
        self._second = second

    @property
    def reasoning_tokens(self) -> int:
        return self._first.reasoning_tokens

    def adjust(self, params: SamplingParams) -> SamplingParams:
        return self._second.adjust(self._first.adjust(params))

    def push(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        return self._forward(self._first.push(text, token_ids), token_ids)

    def finish(self) -> list[Part]:
        return [*self._forward(self._first.finish(), ()), *self._second.finish()]

    def _forward(self, parts: list[Part], token_ids: Sequence[int]) -> list[Part]:
        out: list[Part] = []
        for part in parts:
            if isinstance(part, Content):
                out += self._second.push(part.text, token_ids)
            else:
                out.append(part)
        return out


class WithoutReasoning:
    """A parser whose reasoning is not shown."""

    def __init__(self, parser: AssistantParser) -> None:
        self._parser = parser

    @property
    def reasoning_tokens(self) -> int:
        return self._parser.reasoning_tokens

    def adjust(self, params: SamplingParams) -> SamplingParams:
        return self._parser.adjust(params)

    def push(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        parts = self._parser.push(text, token_ids)
        return [part for part in parts if not isinstance(part, Reasoning)]

    def finish(self) -> list[Part]:
        return [part for part in self._parser.finish() if not isinstance(part, Reasoning)]


class CountedCalls:
    """A parser that tells at the end whether tools were called.

    Args:
        count: called with the answer to that.
    """

    def __init__(self, parser: AssistantParser, count: Callable[[bool], None]) -> None:
        self._parser = parser
        self._count = count
        self._called = False

    @property
    def reasoning_tokens(self) -> int:
        return self._parser.reasoning_tokens

    def adjust(self, params: SamplingParams) -> SamplingParams:
        return self._parser.adjust(params)

    def push(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        return self._seen(self._parser.push(text, token_ids))

    def finish(self) -> list[Part]:
        parts = self._seen(self._parser.finish())
        self._count(self._called)
        return parts

    def _seen(self, parts: list[Part]) -> list[Part]:
        self._called = self._called or any(isinstance(part, ToolCallStart) for part in parts)
        return parts


@dataclass(slots=True)
class ToolCall:
    """A whole tool call; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str = ""


Block = Reasoning | Content | ToolCall


def assemble(parts: Iterable[Part]) -> list[Block]:
    """Whole blocks of parts: neighbouring texts of one kind are joined."""
    blocks: list[Block] = []
    for part in parts:
        last = blocks[-1] if blocks else None
        if isinstance(part, ToolCallStart):
            blocks.append(ToolCall(part.id, part.name))
        elif isinstance(part, ToolCallArguments):
            assert isinstance(last, ToolCall), "arguments follow the start of their call"
            last.arguments += part.text
        elif type(last) is type(part):
            blocks[-1] = type(part)(last.text + part.text)
        else:
            blocks.append(part)
    return blocks
