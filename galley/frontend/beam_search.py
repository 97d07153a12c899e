"""Beam search: the most likely continuations of a prompt.

Knows no engine. Its caller requests one more token of every beam, with the most likely candidates
(`step_params`), and passes the results to `advance`:

    prompts ──▶ engine, one token each ──▶ candidates [beams] ──▶ advance ──▶ prompts …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from galley.errors import InvalidRequest
from galley.outputs import Logprob
from galley.request import RequestOutputKind, SamplingParams, StructuredOutputsParams

Candidates = dict[int, Logprob]


class BeamSearchParams(msgspec.Struct, kw_only=True):
    """How to search (vLLM's names and defaults).

    Attributes:
        beam_width: beams kept from step to step, and answers returned.
        temperature: accepted for vLLM's sake; the search reads log-probabilities, which it does
            not change.
        length_penalty: exponent of the length that a beam's log-probability is divided by.
        include_stop_str_in_output: keep the end-of-sequence token in the tokens.
        structured_outputs: what the text of each beam must be. A beam whose text is complete ends,
            also with `ignore_eos`.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            if getattr(self, name) < 1:
                raise InvalidRequest(
                    f"{name} must be at least 1, got {getattr(self, name)}.", field=name
                )
        # Beyond these the power of a length overflows.
        if not -50 <= self.length_penalty <= 50:
            raise InvalidRequest(
                f"length_penalty must be in [-50, 50], got {self.length_penalty}.",
                field="length_penalty",
            )


@dataclass(slots=True)
class BeamSearchSequence:
    """One answer of `LLM.beam_search` (vLLM's shape); `tokens` begin with the prompt's."""

    tokens: list[int]
    logprobs: list[Candidates]
    cum_logprob: float
    text: str | None
    finish_reason: str
    stop_reason: int | None


@dataclass(slots=True)
class BeamSearchOutput:
    """The answers to one prompt, best first."""

    sequences: list[BeamSearchSequence]


@dataclass(frozen=True, slots=True)
class Beam:
    """One continuation.

    Attributes:
        length: tokens of prompt and continuation, without an end-of-sequence token.
        candidates: of each token, the token itself first.
        stop_id: the end-of-sequence token that ended it.
    """

    length: int
    token_ids: tuple[int, ...] = ()
    cumulative_logprob: float = 0.0
    candidates: tuple[Candidates, ...] = ()
    stop_id: int | None = None

    def score(self, length_penalty: float) -> float:
        return self.cumulative_logprob / float(self.length**length_penalty)


class BeamSearch:
    """The beams of one prompt."""

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        params: BeamSearchParams,
        eos_token_ids: Sequence[int],
    ) -> None:
        self._prompt = list(prompt_token_ids)
        self._params = params
        endless = params.ignore_eos and params.structured_outputs is None
        self._eos = frozenset(() if endless else eos_token_ids)
        self._active = [Beam(len(self._prompt))]
        self._ended: list[Beam] = []
        self._steps = 0

    @property
    def done(self) -> bool:
        return self._steps >= self._params.max_tokens or not self._active

    @property
    def prompts(self) -> list[list[int]]:
        """The sequences to continue by one token: the prompt and a beam each."""
        return [[*self._prompt, *beam.token_ids] for beam in self._active]

    def step_params(self) -> list[SamplingParams]:
        """Parameters of the requests for the next token of each of `prompts`."""
        return [self._params_of(beam) for beam in self._active]

    def _params_of(self, beam: Beam) -> SamplingParams:
        constraint = self._params.structured_outputs
        if constraint is not None:
            constraint = msgspec.structs.replace(constraint, num_written=len(beam.token_ids))
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=2 * self._params.beam_width,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=constraint,
            allowed_logprobs=constraint is not None,
        )

    def advance(self, candidates: Sequence[Candidates]) -> None:
        """Extend the beams by the candidates for the next token of each of `prompts`."""
        self._steps += 1
        grown = []
        for beam, found in zip(self._active, candidates, strict=True):
            for token_id, entry in found.items():
                if token_id in self._eos:
                    self._ended.append(self._end(beam, token_id, found))
                else:
                    grown.append(_extend(beam, token_id, entry, found, beam.length + 1))
        self._active = self._best_of(grown)

    def best(self) -> list[Beam]:
        """The most likely beams, best first."""
        return self._best_of([*self._ended, *self._active])

    def output(self, text_of: Callable[[list[int]], str] | None) -> BeamSearchOutput:
        """The best beams in vLLM's format; their texts contain prompt and continuation."""
        found = []
        for beam in self.best():
            tokens = [*self._prompt, *beam.token_ids]
            found.append(
                BeamSearchSequence(
                    tokens=tokens,
                    logprobs=list(beam.candidates),
                    cum_logprob=beam.cumulative_logprob,
                    text=None if text_of is None else text_of(tokens),
                    finish_reason="length" if beam.stop_id is None else "stop",
                    stop_reason=beam.stop_id,
                )
            )
        return BeamSearchOutput(found)

    def _best_of(self, beams: list[Beam]) -> list[Beam]:
        penalty = self._params.length_penalty
        ranked = sorted(beams, key=lambda beam: beam.score(penalty), reverse=True)
        return ranked[: self._params.beam_width]

    def _end(self, beam: Beam, eos: int, found: Candidates) -> Beam:
        ended = _extend(beam, eos, found[eos], found, beam.length)
        shown = ended if self._params.include_stop_str_in_output else beam
        return Beam(
            ended.length, shown.token_ids, ended.cumulative_logprob, shown.candidates, stop_id=eos
        )


def _extend(beam: Beam, token_id: int, entry: Logprob, found: Candidates, length: int) -> Beam:
    return Beam(
        length,
        (*beam.token_ids, token_id),
        beam.cumulative_logprob + entry.logprob,
        (*beam.candidates, {token_id: entry, **found}),
    )
