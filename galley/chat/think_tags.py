"""Reasoning between `<think>` and `</think>` at the start of the answer."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from galley.chat.parts import Content, Part, Reasoning
from galley.request import SamplingParams

START, END = "<think>", "</think>"


class ThinkTags:
    """A parser of reasoning.

        before ── START ──▶ reasoning ── END ──▶ content
           └── any other text but spaces ──────────▲

    A prompt that ends with the start tag has begun the reasoning already.
    """

    def __init__(self, prompt: str) -> None:
        self._state = "reasoning" if prompt.rstrip().endswith(START) else "before"
        self._held = ""

    def adjust(self, params: SamplingParams) -> SamplingParams:
        """The tags may be special tokens."""
        return msgspec.structs.replace(params, skip_special_tokens=False)

    def push(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        text, self._held = self._held + text, ""
        parts: list[Part] = []
        if self._state == "before":
            text = self._begin(text)
        if self._state == "reasoning":
            thought, end, text = text.partition(END)
            if end:
                self._state = "content"
            else:
                keep = _held_length(thought, END)
                thought, self._held = thought[: len(thought) - keep], thought[len(thought) - keep :]
            if thought:
                parts.append(Reasoning(thought))
        if self._state == "content" and text:
            parts.append(Content(text))
        return parts

    def finish(self) -> list[Part]:
        held, self._held = self._held, ""
        if not held:
            return []
        return [Reasoning(held) if self._state == "reasoning" else Content(held)]

    def _begin(self, text: str) -> str:
        """Leave the state "before" where `text` says how; returns the text that follows."""
        shown = text.lstrip()
        if shown.startswith(START):
            self._state = "reasoning"
            return shown.removeprefix(START)
        if START.startswith(shown):
            self._held = text
        else:
            self._state = "content"
        return text


def _held_length(text: str, marker: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0
