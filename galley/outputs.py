"""Outputs of requests, in vLLM's shapes, and the figures that come with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from galley.request import LoRARequest

T = TypeVar("T")


class Logprob(msgspec.Struct):
    """One candidate token's log-probability (natural log, of the raw distribution)."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class DraftFigures:
    """How the drafts of an answer fared (vLLM's RequestSpecDecodeMetrics).

    Attributes:
        num_spec_tokens: most drafts of a step.
        histogram: number of steps by their accepted drafts, 0 … num_spec_tokens. A step without
            drafts does not count.
        num_draft_tokens: drafts that were computed.
        per_step_accepted, per_step_drafted: of each of these steps; None in a summary.
    """

    num_spec_tokens: int
    histogram: list[int]
    num_draft_tokens: int = 0
    per_step_accepted: list[int] | None = None
    per_step_drafted: list[int] | None = None

    @staticmethod
    def empty(num_spec_tokens: int, detailed: bool) -> DraftFigures:
        histogram = [0] * (num_spec_tokens + 1)
        if not detailed:
            return DraftFigures(num_spec_tokens, histogram)
        return DraftFigures(num_spec_tokens, histogram, 0, [], [])

    def add(self, drafted: int, accepted: int) -> None:
        """Count a step with drafts."""
        self.histogram[accepted] += 1
        self.num_draft_tokens += drafted
        if self.per_step_accepted is not None and self.per_step_drafted is not None:
            self.per_step_accepted.append(accepted)
            self.per_step_drafted.append(drafted)

    def to_dict(self) -> dict[str, Any]:
        """The same with rates, as vLLM's HTTP API has it; null where there were no drafts."""
        steps = sum(self.histogram)
        accepted = sum(place * count for place, count in enumerate(self.histogram))
        figures: dict[str, Any] = {
            "mean_acceptance_length": 1 + accepted / steps if steps else None,
            "draft_acceptance_rate": accepted / self.num_draft_tokens if steps else None,
            "acceptance_histogram": self.histogram,
            "num_spec_steps": steps,
            "num_accepted_draft_tokens": accepted,
            "num_draft_tokens": self.num_draft_tokens,
            "num_spec_tokens": self.num_spec_tokens,
        }
        if self.per_step_accepted is not None:
            figures["per_step_accepted"] = self.per_step_accepted
            figures["per_step_drafted"] = self.per_step_drafted
        return figures


def joined_figures(parts: Sequence[DraftFigures]) -> DraftFigures:
    """Those of several answers together; steps are in the order of the answers."""
    first = parts[0]
    whole = DraftFigures.empty(first.num_spec_tokens, first.per_step_accepted is not None)
    for part in parts:
        whole.histogram = [a + b for a, b in zip(whole.histogram, part.histogram, strict=True)]
        whole.num_draft_tokens += part.num_draft_tokens
        if whole.per_step_accepted is not None and whole.per_step_drafted is not None:
            whole.per_step_accepted += part.per_step_accepted or []
            whole.per_step_drafted += part.per_step_drafted or []
    return whole


@dataclass(slots=True)
class CompletionOutput:
    """One of the n answers (vLLM's shape)."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: Sequence[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    #: The seed that it was sampled with: its own, or one that it got on arrival; None if greedy.
    seed: int | None = None
    lora_request: LoRARequest | None = None
    #: With --per-request-spec-decode-metrics.
    spec_decode_metrics: DraftFigures | None = None
    #: Fields of features that do not exist yet.
    routed_experts: ClassVar[None] = None
    sampling_mask: ClassVar[None] = None
    weight_versions: ClassVar[None] = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Wall-clock seconds (`time.time`) of a request's life; 0.0 where not reached."""

    arrival_time: float = 0.0
    queued_time: float = 0.0
    scheduled_time: float = 0.0
    first_token_time: float = 0.0
    last_token_time: float = 0.0
    num_preemptions: int = 0

    # The same by the names of vLLM 0.32.

    @property
    def queued_ts(self) -> float:
        return self.queued_time

    @property
    def scheduled_ts(self) -> float:
        return self.scheduled_time

    @property
    def first_token_ts(self) -> float:
        return self.first_token_time

    @property
    def last_token_ts(self) -> float:
        return self.last_token_time

    @property
    def first_token_latency(self) -> float:
        """Seconds from arrival to the first token; 0.0 before it."""
        return self.first_token_time - self.arrival_time if self.first_token_time else 0.0


@dataclass(slots=True)
class PoolingOutput:
    """The vector of a prompt, or one of each token: float32 [columns] or [tokens, columns]."""

    data: NDArray[np.float32]


@dataclass(slots=True)
class _RequestOutput(Generic[T]):
    """The fields that the outputs of requests that pool share."""

    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool = True


class PoolingRequestOutput(_RequestOutput[PoolingOutput]):
    """The one output of a request that pools (vLLM's shape)."""

    __slots__ = ()


@dataclass(slots=True)
class EmbeddingOutput:
    """The vector of a prompt (vLLM's shape)."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


class EmbeddingRequestOutput(_RequestOutput[EmbeddingOutput]):
    """A prompt and its vector (vLLM's shape)."""

    __slots__ = ()

    @classmethod
    def of(cls, pooled: PoolingRequestOutput) -> EmbeddingRequestOutput:
        """The same with the vector as a list of numbers."""
        return cls(
            pooled.request_id,
            EmbeddingOutput(pooled.outputs.data.tolist()),
            pooled.prompt_token_ids,
            pooled.num_cached_tokens,
        )


@dataclass(slots=True)
class ClassificationOutput:
    """The numbers of all labels, probabilities if they were activated (vLLM's shape)."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


class ClassificationRequestOutput(_RequestOutput[ClassificationOutput]):
    """A prompt and its labels (vLLM's shape)."""

    __slots__ = ()

    @classmethod
    def of(cls, pooled: PoolingRequestOutput) -> ClassificationRequestOutput:
        return cls(
            pooled.request_id,
            ClassificationOutput(pooled.outputs.data.tolist()),
            pooled.prompt_token_ids,
            pooled.num_cached_tokens,
        )


@dataclass(slots=True)
class ScoringOutput:
    """How well two texts belong together (vLLM's shape)."""

    score: float


class ScoringRequestOutput(_RequestOutput[ScoringOutput]):
    """A pair of texts and its score (vLLM's shape)."""

    __slots__ = ()


@dataclass(slots=True)
class RequestOutput:
    """Returned by `LLM.generate` and turned into JSON by the server (vLLM's shape)."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: Sequence[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int | None = None
    metrics: RequestMetrics | None = None
    lora_request: LoRARequest | None = None
    #: Fields of features that do not exist yet.
    encoder_prompt: ClassVar[None] = None
    encoder_prompt_token_ids: ClassVar[None] = None
    num_cache_creation_tokens: ClassVar[None] = None
    prompt_token_id_logprobs: ClassVar[None] = None
    kv_transfer_params: ClassVar[None] = None
    ec_transfer_params: ClassVar[None] = None
