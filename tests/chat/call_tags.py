"""A small parser of tool calls, for tests: `[name:arguments]`."""

from __future__ import annotations

from collections.abc import Sequence

from galley.chat.parts import Content, Part, ToolCallArguments, ToolCallStart
from galley.request import SamplingParams


class CallTags:
    """Tool calls as `[name:arguments]`; every character is a part of its own."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._open = False
        self._count = 0

    def adjust(self, params: SamplingParams) -> SamplingParams:
        return params

    def push(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        parts: list[Part] = []
        for char in text:
            if char == "[":
                self._name = ""
            elif self._name is not None and char == ":":
                parts.append(ToolCallStart(self._count, f"call_{self._count}", self._name))
                self._name, self._open = None, True
            elif self._name is not None:
                self._name += char
            elif self._open and char == "]":
                self._open, self._count = False, self._count + 1
            else:
                parts.append(ToolCallArguments(self._count, char) if self._open else Content(char))
        return parts

    def finish(self) -> list[Part]:
        return []
