"""Turns the columns of a step into text and `RequestOutput`s.

One `Sequence` per engine request holds its output (which is also what a replay needs). One
`RequestState` per call of generate joins its n sequences and buffers updates between engine and
reader: they are merged, so that a slow reader costs no memory. Knows no sockets and no event loop:
a state calls `notify` when there is something to take.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from galley.config import EngineConfig
from galley.errors import GalleyError, InvalidRequest, Overloaded, RequestFailed
from galley.frontend.flat_logprobs import prompt_logprobs, sample_logprobs
from galley.frontend.input_processor import Submission
from galley.frontend.logprobs import TokenTexts, unpack_logprobs
from galley.frontend.submitted import SUBMITTED
from galley.messages import Finished, Outputs, Started
from galley.observability.observer import RequestObserver
from galley.outputs import (
    CompletionOutput,
    DraftFigures,
    Logprob,
    PoolingOutput,
    PoolingRequestOutput,
    RequestMetrics,
    RequestOutput,
)
from galley.request import (
    Failure,
    FailureKind,
    FinishReason,
    PoolingParams,
    Request,
    RequestOutputKind,
    SamplingParams,
)

if TYPE_CHECKING:
    from galley.text.detokenizer import TextStream


#: Of a request that pools: one output at the end, without tokens and text.
_OF_POOLING = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False)
_ERRORS: dict[FailureKind, type[GalleyError]] = {
    FailureKind.ENGINE: RequestFailed,
    FailureKind.REQUEST: InvalidRequest,
    FailureKind.LOAD: Overloaded,
}


class Tap(Protocol):
    """Receives a sequence's text directly, past its state. `write` returns False to refuse it: the
    tap is then removed.
    """

    def write(self, text: str) -> bool: ...


class Detokenizer(TokenTexts, Protocol):
    """The part of a tokenizer that is used here."""

    def stream(self, prompt_token_ids: list[int], params: SamplingParams) -> TextStream: ...


class Sequence:
    """One of the n answers of a request.

    With a `tap` text is written there and not appended to `pieces`, until it is refused or the
    sequence ends. The next output contains all tokens since the last one.
    """

    __slots__ = (
        "cumulative_logprob",
        "drafts",
        "finish_reason",
        "index",
        "last_token_time",
        "logprobs",
        "metrics",
        "pieces",
        "pooled",
        "pooled_columns",
        "request",
        "state",
        "stop_reason",
        "taken_pieces",
        "taken_tokens",
        "tap",
        "text",
        "token_ids",
    )

    def __init__(
        self, index: int, request: Request, state: RequestState, text: TextStream | None
    ) -> None:
        self.index = index
        self.request = request
        self.state = state
        self.text = text
        self.token_ids: list[int] = []
        self.pieces: list[str] = []
        wants = not request.pools and request.sampling.wants_logprobs
        self.logprobs: list[dict[int, Logprob]] | None = [] if wants else None
        self.cumulative_logprob = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.metrics = RequestMetrics(arrival_time=request.arrival_time)
        self.last_token_time = 0.0
        self.taken_tokens = 0
        self.taken_pieces = 0
        self.tap: Tap | None = None
        self.pooled: bytes | None = None
        self.pooled_columns = 0
        self.drafts: DraftFigures | None = None

    def push(self, token_id: int) -> bool:
        """Append a token; True if its text completed a stop string: the sequence has ended."""
        self.token_ids.append(token_id)
        text = self.text
        if text is None:
            return False
        piece = text.push(token_id)
        if text.matched is None:
            tap = self.tap
            if tap is None:
                if piece:
                    self.pieces.append(piece)
            elif piece and not tap.write(piece):
                self.tap = None
                self.pieces.append(piece)
            return False
        if piece:
            self.pieces.append(piece)
        self.finish_reason, self.stop_reason = "stop", text.matched
        return True

    def record_token_time(self, now: float) -> None:
        """Record the time at which tokens have arrived."""
        if self.last_token_time == 0.0:
            self.metrics.first_token_time = now
        self.last_token_time = now

    def push_last(self, token_id: int, hide: bool) -> bool:
        """Append the token that ended the sequence; `hide` keeps a stop token out of the text."""
        if not hide:
            return self.push(token_id)
        self.token_ids.append(token_id)
        return False

    def count_logprobs(self, since: int) -> None:
        """Add the logprobs of tokens from `since` on; those after a stop are dropped."""
        assert self.logprobs is not None
        del self.logprobs[len(self.token_ids) :]
        for entry, token in zip(self.logprobs[since:], self.token_ids[since:], strict=True):
            self.cumulative_logprob += entry[token].logprob

    def end(self, reason: str, stop_reason: int | str | None) -> None:
        """End the sequence, unless a stop string in the last token has ended it already."""
        if self.finish_reason is None:
            if self.text is not None:
                rest = self.text.finish()
                if rest:
                    self.pieces.append(rest)
                if self.text.matched is not None:
                    reason, stop_reason = "stop", self.text.matched
            self.finish_reason, self.stop_reason = reason, stop_reason

    @property
    def is_cut(self) -> bool:
        """Whether the model's length ended it before its `max_tokens`."""
        params = self.state.submission.params
        wanted = params.max_tokens if isinstance(params, SamplingParams) else None
        return self.finish_reason == "length" and wanted != len(self.token_ids)

    def is_due(self, interval: int) -> bool:
        """Whether at least `interval` tokens are new, or no output has been taken yet."""
        taken = self.taken_tokens
        return not taken or len(self.token_ids) - taken >= interval

    def output(self, delta: bool) -> CompletionOutput:
        """The part that is new since the last call (delta), or everything."""
        tokens_from = self.taken_tokens if delta else 0
        pieces_from = self.taken_pieces if delta else 0
        self.taken_tokens, self.taken_pieces = len(self.token_ids), len(self.pieces)
        logprobs, params = self.logprobs, self.request.sampling
        if logprobs is not None:
            logprobs = logprobs[tokens_from:]
        return CompletionOutput(
            index=self.index,
            text="".join(self.pieces[pieces_from:]),
            token_ids=self.token_ids[tokens_from:],
            cumulative_logprob=None if logprobs is None else self.cumulative_logprob,
            logprobs=sample_logprobs(logprobs, params.flat_logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            seed=params.seed,
            spec_decode_metrics=self.drafts,
        )


class RequestState:
    """One call of generate: its sequences, and updates that its reader has not taken.

    `engine_index` is the engine that has it, None while there is none (set by the client).
    """

    __slots__ = (
        "changed",
        "engine_index",
        "error",
        "interval",
        "kind",
        "lora_request",
        "notify",
        "num_cached_tokens",
        "num_unfinished",
        "only_text",
        "prompt_logprobs",
        "sequences",
        "submission",
    )

    def __init__(
        self, submission: Submission, tokenizer: Detokenizer | None, interval: int = 1
    ) -> None:
        params = submission.params
        if isinstance(params, PoolingParams):
            params = _OF_POOLING
        self.submission = submission
        adapter = submission.adapter
        self.lora_request = None if adapter is None else adapter.lora_request
        self.kind = params.output_kind
        #: Tokens between two outputs; the first and the last are output at once.
        self.interval = max(interval, params.stream_interval or 1)
        self.num_cached_tokens: int | None = None
        self.error: GalleyError | None = None
        self.engine_index: int | None = None
        self.notify: Callable[[], None] | None = None
        self.changed: dict[int, Sequence] = {}
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = [None] * len(submission.prompt_token_ids)
        self.sequences: list[Sequence] = []
        for i, request in enumerate(submission.requests):
            text = None
            if tokenizer is not None and params.detokenize:
                text = tokenizer.stream(submission.prompt_token_ids, params)
            self.sequences.append(Sequence(i, request, self, text))
        self.num_unfinished = len(self.sequences)
        #: Until its end there is nothing to output but the text of one sequence.
        self.only_text = (
            params.output_kind == RequestOutputKind.DELTA
            and self.num_unfinished == self.interval == 1
            and self.prompt_logprobs is None
            and self.sequences[0].logprobs is None
        )

    @property
    def ended(self) -> bool:
        return self.num_unfinished == 0 or self.error is not None

    def mark(self, sequence: Sequence) -> None:
        """Record an update of `sequence`, and notify the reader if it waits for this."""
        first = not self.changed
        self.changed[sequence.index] = sequence
        if self.kind == RequestOutputKind.FINAL_ONLY:
            if self.num_unfinished == 0:
                self.wake()
        elif self.num_unfinished == 0 or (
            first if self.interval == 1 else sequence.is_due(self.interval)
        ):
            self.wake()

    def wake(self) -> None:
        if self.notify is not None:
            self.notify()

    def set_tap(self, tap: Tap | None) -> None:
        """Write text directly to `tap`, if the request outputs only text and everything before has
        been taken. None: stop that.
        """
        if tap is None or (self.only_text and not self.changed):
            self.sequences[0].tap = tap

    def take(self) -> RequestOutput | None:
        """The next output, or None. Raises the error with which the request ended."""
        if self.error is not None:
            raise self.error
        kind = self.kind
        if kind == RequestOutputKind.FINAL_ONLY:
            if self.num_unfinished:
                return None
            updates = self.sequences
        else:
            if not self.changed:
                return None
            updates = [self.changed[i] for i in sorted(self.changed)]
        self.changed = {}
        delta = kind == RequestOutputKind.DELTA
        submission = self.submission
        first = self.sequences[0]
        first.metrics.last_token_time = first.last_token_time
        flat = first.request.sampling.flat_logprobs
        return RequestOutput(
            request_id=submission.request_id,
            prompt=submission.prompt,
            prompt_token_ids=submission.prompt_token_ids,
            outputs=[s.output(delta) for s in updates],
            finished=self.num_unfinished == 0,
            prompt_logprobs=prompt_logprobs(self.prompt_logprobs, flat),
            num_cached_tokens=self.num_cached_tokens,
            metrics=first.metrics,
            lora_request=self.lora_request,
        )

    def take_pooled(self) -> PoolingRequestOutput | None:
        """The vector of a request that pools, or None before its end.

        Raises the error with which the request ended.
        """
        import numpy as np

        (sequence,) = self.sequences
        if self.error is not None:
            raise self.error
        if self.num_unfinished:
            return None
        if sequence.pooled is None:
            raise RequestFailed("the request was aborted.")
        data, columns = np.frombuffer(sequence.pooled, np.float32), sequence.pooled_columns
        return PoolingRequestOutput(
            request_id=self.submission.request_id,
            outputs=PoolingOutput(data.reshape(-1, columns) if columns else data),
            prompt_token_ids=self.submission.prompt_token_ids,
            num_cached_tokens=self.num_cached_tokens or 0,
        )


def figures_of(config: EngineConfig) -> Callable[[], DraftFigures] | None:
    """The function that makes the figures of drafts for --per-request-spec-decode-metrics."""
    level = config.observability.per_request_spec_decode_metrics
    drafts = config.speculative.settings
    if level == "none" or drafts is None:
        return None
    return partial(DraftFigures.empty, drafts.most_drafts, level == "detailed")


class OutputProcessor:
    """Applies outputs to unfinished sequences, and notifies an observer of their start and end.

    Attributes:
        sequences: handle → unfinished sequence, in order of arrival.

    Args:
        new_figures: makes the figures of drafts that each answer has; None = it has none.
    """

    def __init__(
        self,
        tokenizer: Detokenizer | None,
        observer: RequestObserver | None = None,
        stream_interval: int = 1,
        new_figures: Callable[[], DraftFigures] | None = None,
    ) -> None:
        self._stream_interval = stream_interval
        self._new_figures = new_figures
        self.tokenizer = tokenizer
        self.observer = observer
        self.sequences: dict[int, Sequence] = {}

    def add(self, submission: Submission) -> RequestState:
        state = RequestState(submission, self.tokenizer, self._stream_interval)
        if (submitted := SUBMITTED.get()) is not None:
            submitted.append(state)
        for sequence in state.sequences:
            self.sequences[sequence.request.handle] = sequence
            if self._new_figures is not None:
                sequence.drafts = self._new_figures()
            if self.observer is not None:
                self.observer.added(sequence.request, sequence.index, len(state.sequences))
        return state

    def drop(self, state: RequestState, reason: FinishReason = FinishReason.ABORT) -> list[int]:
        """End the unfinished sequences of a state; returns the handles to abort in the engine."""
        live = [s for s in state.sequences if s.request.handle in self.sequences]
        for sequence in live:
            sequence.end(str(reason), None)
            self._leave(sequence, reason)
        return [s.request.handle for s in live]

    def fail(self, state: RequestState, error: GalleyError) -> list[int]:
        """End a state with an error; returns the handles that the engine still has."""
        if state.ended:
            return []
        state.error = error
        return self.drop(state, FinishReason.ERROR)

    def process(self, outputs: Outputs) -> list[int]:
        """Apply one message; returns handles to abort in the engine (a stop string was found)."""
        if self.observer is not None:
            self.observer.outputs(outputs)
        for started in outputs.started:
            self._start(started)
        if outputs.prompt_logprobs is not None or outputs.logprobs is not None:
            self._add_logprobs(outputs)
        if outputs.drafts:
            self._add_drafts(outputs)
        ends = {f.handle: f for f in outputs.finished} if outputs.finished else {}
        aborts = self._add_tokens(outputs, ends)
        for finished in outputs.finished:
            aborts += self._finish(finished)
        return aborts

    # ------------------------------------------------------------------ parts of a message

    def _start(self, started: Started) -> None:
        sequence = self.sequences.get(started.handle)
        if sequence is None:
            return
        metrics = sequence.metrics
        if started.resumed:
            metrics.num_preemptions += 1
        elif metrics.scheduled_time == 0.0:
            metrics.queued_time = started.queued_time
            metrics.scheduled_time = started.scheduled_time
            if sequence.index == 0:
                sequence.state.num_cached_tokens = started.num_cached_tokens

    def _add_logprobs(self, outputs: Outputs) -> None:
        if outputs.prompt_logprobs is not None:
            for handle, at, entry in unpack_logprobs(outputs.prompt_logprobs, self.tokenizer):
                sequence = self.sequences.get(handle)
                table = None if sequence is None else sequence.state.prompt_logprobs
                if table is not None and at < len(table):
                    table[at] = entry
        if outputs.logprobs is not None:
            for handle, _, entry in unpack_logprobs(outputs.logprobs, self.tokenizer):
                sequence = self.sequences.get(handle)
                if sequence is not None and sequence.logprobs is not None:
                    sequence.logprobs.append(entry)

    def _add_drafts(self, outputs: Outputs) -> None:
        handles = memoryview(outputs.handles).cast("q").tolist()
        numbers = iter(memoryview(outputs.drafts).cast("i").tolist())
        for handle, drafted, accepted in zip(handles, numbers, numbers, strict=True):
            sequence = self.sequences.get(handle)
            if drafted and sequence is not None and sequence.drafts is not None:
                sequence.drafts.add(drafted, accepted)

    def _add_tokens(self, outputs: Outputs, ends: dict[int, Finished]) -> list[int]:
        handles = memoryview(outputs.handles).cast("q").tolist()
        tokens = memoryview(outputs.token_ids).cast("i").tolist()
        counts = memoryview(outputs.counts).cast("i").tolist()
        if not counts and not ends:
            return self._add_single_tokens(handles, tokens, outputs.timestamp)
        now, sequences = outputs.timestamp, self.sequences
        aborts: list[int] = []
        at = 0
        for i, handle in enumerate(handles):
            count = counts[i] if counts else 1
            new = tokens[at : at + count]
            at += count
            sequence = sequences.get(handle)
            if sequence is None:
                continue
            end = ends.get(handle)
            if end is not None:
                # The last text is output together with the end.
                sequence.tap = None
            stopped = self._push(sequence, new, end)
            sequence.record_token_time(now)
            if stopped:
                self._leave(sequence, FinishReason.STOP)
                if end is None:
                    aborts.append(handle)
            elif end is None and sequence.tap is None:
                sequence.state.mark(sequence)
        return aborts

    def _add_single_tokens(self, handles: list[int], tokens: list[int], now: float) -> list[int]:
        """The steady state: one token each, and no ends."""
        aborts: list[int] = []
        sequences = self.sequences
        for handle, token in zip(handles, tokens, strict=True):
            sequence = sequences.get(handle)
            if sequence is None:
                continue
            stopped = sequence.push(token)
            if sequence.logprobs is not None:
                sequence.count_logprobs(len(sequence.token_ids) - 1)
            sequence.record_token_time(now)
            if stopped:
                self._leave(sequence, FinishReason.STOP)
                aborts.append(handle)
            elif sequence.tap is None:
                sequence.state.mark(sequence)
        return aborts

    @staticmethod
    def _push(sequence: Sequence, new: list[int], end: Finished | None) -> bool:
        """Append tokens up to a stop string; those after it are dropped."""
        before = len(sequence.token_ids)
        last = len(new) - 1
        stopped = False
        for j, token in enumerate(new):
            if end is not None and j == last and end.reason == FinishReason.STOP:
                hide = not sequence.request.sampling.include_stop_str_in_output
                stopped = sequence.push_last(token, hide)
            else:
                stopped = sequence.push(token)
            if stopped:
                break
        if sequence.logprobs is not None:
            sequence.count_logprobs(before)
        return stopped

    def _finish(self, finished: Finished) -> list[int]:
        sequence = self.sequences.get(finished.handle)
        if sequence is None:
            return []
        reason = FinishReason(finished.reason)
        if reason == FinishReason.ERROR:
            failure = finished.error or Failure("the engine failed on this request.")
            error = _ERRORS[failure.kind](failure.message, field=failure.field)
            live = self.fail(sequence.state, error)
            return [h for h in live if h != finished.handle]
        sequence.pooled, sequence.pooled_columns = finished.pooled, finished.pooled_columns
        sequence.end(str(reason), finished.stop_reason)
        self._leave(sequence, reason)
        return []

    def _leave(self, sequence: Sequence, reason: FinishReason) -> None:
        handle = sequence.request.handle
        del self.sequences[handle]
        state = sequence.state
        state.num_unfinished -= 1
        if state.num_unfinished == 0:
            # Readers may keep the state, and its sequences refer to it: that keeps no file open.
            state.submission.adapter = None
        state.mark(sequence)
        if self.observer is not None:
            self.observer.finished(handle, reason, len(sequence.token_ids))
