"""What every answer of a generation has: its head, the count of its tokens, and its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from galley.errors import GalleyError
from galley.request import RequestOutput
from galley.server.errors import error_event
from galley.server.protocol.base import PromptTokensDetails, Usage

to_json = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"


def failed_stream(error: GalleyError) -> bytes:
    """The end of one of OpenAI's streams that has begun and cannot go on."""
    return b"data: " + error_event(error) + b"\n\n" + DONE


@dataclass(frozen=True, slots=True)
class Head:
    """The fields that are the same in every chunk of an answer."""

    id: str
    model: str
    fingerprint: str | None
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk_prefix(self, object: str) -> bytes:
        """`data: {…,"choices":[` of each event of a stream."""
        head = {"id": self.id, "object": object, "created": self.created, "model": self.model}
        if self.fingerprint is not None:
            head["system_fingerprint"] = self.fingerprint
        return b"data: " + to_json(head)[:-1] + b',"choices":['


class Tally:
    """Tokens of an answer as they come, over all its prompts and choices.

    Args:
        details: whether usage tells of cached prompt tokens.
        count_generated: False where the generated tokens are not part of the answer (echo of a
            prompt with `max_tokens` 0).
    """

    def __init__(self, details: bool, count_generated: bool = True) -> None:
        self._details = details
        self._count_generated = count_generated
        self._prompts: dict[int, int] = {}
        self._cached: dict[int, int] = {}
        self._generated = 0

    def add(self, index: int, output: RequestOutput) -> None:
        """Count what `output` of prompt `index` brings: outputs are deltas, or the only one."""
        if index not in self._prompts:
            self._prompts[index] = len(output.prompt_token_ids)
            self._cached[index] = output.num_cached_tokens or 0
        if self._count_generated:
            for choice in output.outputs:
                self._generated += len(choice.token_ids)

    def add_tokens(self, count: int) -> None:
        """Count generated tokens of a choice that `add` has seen."""
        if self._count_generated:
            self._generated += count

    def usage(self) -> Usage:
        prompt = sum(self._prompts.values())
        details = PromptTokensDetails(sum(self._cached.values())) if self._details else None
        return Usage(prompt, prompt + self._generated, self._generated, details)
