"""Parts that all generation answers share: header fields, usage, and the end of a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from galley.chat.parts import AssistantParser
from galley.errors import GalleyError
from galley.outputs import DraftFigures, RequestMetrics, RequestOutput, joined_figures
from galley.server.errors import error_event
from galley.server.protocol.base import (
    CompletionTokensDetails,
    PerRequestMetrics,
    PromptTokensDetails,
    Usage,
)

to_json = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"


def error_event_and_done(error: GalleyError) -> bytes:
    """The end of an OpenAI stream that has begun and failed."""
    return b"data: " + error_event(error) + b"\n\n" + DONE


@dataclass(frozen=True, slots=True)
class ResponseHeader:
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


class UsageCounter:
    """Counts tokens of an answer over all its prompts and choices.

    Args:
        details: usage includes cached prompt tokens.
        count_generated: False where the generated tokens are not part of the answer (echo of a
            prompt with `max_tokens` 0).
        timed: the answer includes the durations of its phases.
        parsers: of all choices, where they count tokens of reasoning.
    """

    def __init__(
        self,
        details: bool,
        count_generated: bool = True,
        timed: bool = False,
        parsers: Sequence[AssistantParser] = (),
    ) -> None:
        self._parsers = parsers
        self._details = details
        self._timed = timed
        self._metrics: RequestMetrics | None = None
        self._choices: set[tuple[int, int]] = set()
        self._drafts: dict[tuple[int, int], DraftFigures] = {}
        self._count_generated = count_generated
        self._prompts: dict[int, int] = {}
        self._cached: dict[int, int] = {}
        self._generated = 0

    def set_prompts(self, counts: Sequence[int]) -> None:
        """Set the number of tokens of each prompt, where outputs do not have them."""
        self._prompts = dict(enumerate(counts))
        self._cached = dict.fromkeys(self._prompts, 0)

    def add_prompt(self, index: int, output: RequestOutput) -> None:
        """Count the prompt `index`, which `output` has, once."""
        if index not in self._prompts:
            self._prompts[index] = len(output.prompt_token_ids)
            self._cached[index] = output.num_cached_tokens or 0

    def add(self, index: int, output: RequestOutput) -> None:
        """Count `output` of prompt `index`, which is a delta or the only output."""
        self.add_prompt(index, output)
        if self._count_generated:
            for choice in output.outputs:
                self._generated += len(choice.token_ids)
        if self._timed:
            self._metrics = output.metrics
            self._choices.update((index, choice.index) for choice in output.outputs)
        for choice in output.outputs:
            if choice.spec_decode_metrics is not None:
                self._drafts[index, choice.index] = choice.spec_decode_metrics

    def metrics(self) -> PerRequestMetrics | None:
        """Durations of the answer's phases, if it has one choice, and drafts of all choices; None
        where neither is asked for.
        """
        made = None
        if self._metrics is not None and len(self._choices) == 1:
            made = timings_of(self._metrics, self._generated)
        if self._drafts:
            made = made or PerRequestMetrics()
            made.speculative_decoding = joined_figures([*self._drafts.values()]).to_dict()
        return made

    def usage(self) -> Usage:
        prompt = sum(self._prompts.values())
        details = PromptTokensDetails(sum(self._cached.values())) if self._details else None
        reasoning = None
        if self._parsers:
            tokens = sum(parser.reasoning_tokens for parser in self._parsers)
            reasoning = CompletionTokensDetails(tokens)
        return Usage(prompt, prompt + self._generated, self._generated, details, reasoning)

    def end(self) -> bytes:
        """The last event of a stream, from its usage on."""
        end: dict[str, Any] = {"usage": self.usage()}
        metrics = self.metrics()
        if metrics is not None:
            end["metrics"] = metrics
        return to_json(end)[1:] + b"\n\n"


def timings_of(metrics: RequestMetrics, num_tokens: int) -> PerRequestMetrics:
    """Milliseconds of a request's phases; None for a phase that was not reached."""
    queued, scheduled = metrics.queued_time, metrics.scheduled_time
    first, last = metrics.first_token_time, metrics.last_token_time
    decode = _milliseconds(first, last)
    inference = _milliseconds(scheduled, last)
    return PerRequestMetrics(
        time_to_first_token_ms=_milliseconds(scheduled, first),
        generation_time_ms=decode,
        queue_time_ms=_milliseconds(queued, scheduled),
        mean_itl_ms=None if decode is None or num_tokens < 2 else decode / (num_tokens - 1),
        tokens_per_second=num_tokens / inference * 1000 if inference else None,
    )


def _milliseconds(begin: float, end: float) -> float | None:
    """0 if the clock was set back meanwhile."""
    return max(end - begin, 0.0) * 1000 if begin and end else None
