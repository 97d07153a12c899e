"""An engine client without an engine: real input and output processing, scripted tokens.

Runs in the server's event loop. Each request answers with the tokens of its script; a request for
logprobs gets plausible ones; a request that is closed is remembered in `aborted`.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from typing import Any

from galley.errors import EngineDead
from galley.frontend.client import RequestStream
from galley.frontend.input_processor import InputProcessor, Limits, Submission
from galley.frontend.output_processor import OutputProcessor, RequestState
from galley.messages import Counters, Finished, Logprobs, Outputs, Ready, Started, Stats
from galley.observability.observer import RequestObserver
from galley.request import (
    Failure,
    FinishReason,
    Request,
    SamplingParams,
    StructuredOutputsParams,
)
from galley.text import Tokenizer

#: request → its tokens; the last one is followed by an end-of-sequence token
Script = Callable[[Request], list[int]]


class Row:
    """A request that is being answered."""

    def __init__(self, request: Request, tokens: list[int]) -> None:
        self.request = request
        self.prompt = array("i", request.prompt_token_ids).tolist()
        self.tokens = tokens
        self.sent = 0


class FakeEngine:
    """An `EngineClient`.

    Args:
        script: the answer to each request.
        observer: as a real client's.

    Attributes:
        seen: parameters and prompts of all requests, in order.
        aborted: ids of requests whose readers went away.
        pause: seconds between steps.
        hold: no step is taken while it is set.
        down: there is no engine: /health says so, and requests fail with what it holds.
        failure: error text with which every running request ends at the next step.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        limits: Limits,
        script: Script,
        observer: RequestObserver | None = None,
    ) -> None:
        self.inputs = InputProcessor(limits, tokenizer)
        self.outputs = OutputProcessor(tokenizer, observer)
        self.script = script
        self.seen: list[Request] = []
        self.aborted: list[str] = []
        self.pause = 0.0
        self.hold = False
        self.down: str | None = None
        self.failure: str | None = None
        self.vocab_size = limits.vocab_size
        self._rows: dict[int, Row] = {}
        self._steps = 0
        self._task: asyncio.Task[None] | None = None
        if observer is not None:
            observer.ready(Ready(0, 1, limits.max_model_len, 64, 16, True))

    # ------------------------------------------------------------------ EngineClient

    @property
    def limits(self) -> Limits:
        return self.inputs.limits

    @property
    def healthy(self) -> bool:
        return self.down is None

    @property
    def batch_invariant(self) -> bool | None:
        return True

    @property
    def num_unfinished(self) -> int:
        return len(self.outputs.sequences)

    def prepare(
        self, prompt: Any, params: SamplingParams, request_id: str, **options: Any
    ) -> Submission:
        return self.inputs.process(prompt, params, request_id, **options)

    def generate(
        self, prompt: Any, params: SamplingParams, request_id: str, **options: Any
    ) -> RequestStream:
        if self.down is not None:
            raise EngineDead(self.down)
        submission = self.inputs.process(prompt, params, request_id, **options)
        state = self.outputs.add(submission)
        for request in submission.requests:
            self.seen.append(request)
            self._rows[request.handle] = Row(request, self.script(request))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())
        return RequestStream(state, self._cancel)

    async def check_constraint(self, params: StructuredOutputsParams) -> None:
        self.inputs.constraint_of(params)

    def abort(self, request_id: str) -> None:
        raise NotImplementedError

    async def call(self, method: str, *args: Any) -> list[Any]:
        raise NotImplementedError

    async def wait_healthy(self) -> None:
        return

    def _cancel(self, state: RequestState) -> None:
        self.aborted.append(state.submission.request_id)
        for handle in self.outputs.drop(state):
            self._rows.pop(handle, None)

    # ------------------------------------------------------------------ steps

    async def _run(self) -> None:
        while self._rows:
            await asyncio.sleep(max(self.pause, 0.002) if self.hold else self.pause)
            if not self.hold:
                self._step()

    def _step(self) -> None:
        rows = list(self._rows.values())
        started, finished = [], []
        for row in rows:
            if not row.sent:
                now = time.time()
                started.append(Started(row.request.handle, self._cached(row), now, now))
            end = self._end(row)
            row.sent += 1
            if end is not None:
                finished.append(end)
        if self.failure is not None:
            finished = [
                Finished(r.request.handle, FinishReason.ERROR, None, Failure(self.failure))
                for r in rows
            ]
        self._steps += 1
        for end in finished:
            del self._rows[end.handle]
        prompts = [
            r for r in rows if r.sent == 1 and r.request.sampling.prompt_logprobs is not None
        ]
        wanting = [r for r in rows if r.request.sampling.logprobs is not None]
        aborts = self.outputs.process(
            Outputs(
                step=self._steps,
                epoch=1,
                engine_index=0,
                timestamp=time.time(),
                handles=array("q", [r.request.handle for r in rows]).tobytes(),
                token_ids=array("i", [self._token(r) for r in rows]).tobytes(),
                logprobs=self._logprobs(
                    [(r, 0, self._token(r), r.request.sampling.logprobs or 0) for r in wanting]
                ),
                prompt_logprobs=self._logprobs(
                    [
                        (r, at, token, r.request.sampling.prompt_logprobs or 0)
                        for r in prompts
                        for at, token in enumerate(r.prompt)
                        if at
                    ]
                ),
                started=started,
                finished=finished,
                stats=Stats(
                    num_running=len(self._rows),
                    counters=Counters(num_steps=1),
                    step_tokens=sum(len(r.prompt) if r.sent == 1 else 1 for r in rows),
                    kv_cache_usage=len(self._rows) / 64,
                ),
            )
        )
        for handle in aborts:
            self._rows.pop(handle, None)

    def _cached(self, row: Row) -> int:
        """Whole blocks of a prompt that was seen before."""
        prompts = [r.prompt_token_ids for r in self.seen if r is not row.request]
        return (len(row.prompt) - 1) // 16 * 16 if row.request.prompt_token_ids in prompts else 0

    @staticmethod
    def _token(row: Row) -> int:
        """The token of the step just taken."""
        at = row.sent - 1
        if at < len(row.tokens):
            return row.tokens[at]
        return row.request.eos_token_ids[0]

    def _end(self, row: Row) -> Finished | None:
        request, at = row.request, row.sent
        token = row.tokens[at] if at < len(row.tokens) else request.eos_token_ids[0]
        if at + 1 > request.sampling.min_tokens:
            if token in request.eos_token_ids and not request.sampling.ignore_eos:
                return Finished(request.handle, FinishReason.STOP)
            if token in (request.sampling.stop_token_ids or ()):
                return Finished(request.handle, FinishReason.STOP, token)
        if len(row.prompt) + at + 1 >= request.max_total_tokens:
            return Finished(request.handle, FinishReason.LENGTH)
        return None

    def _logprobs(self, entries: list[tuple[Row, int, int, int]]) -> Logprobs | None:
        """Token t at −t/1000 and rank 2, before it candidates with ranks 1 … k."""
        if not entries:
            return None
        handles, positions, ranks, indptr = array("q"), array("i"), array("i"), array("i", [0])
        ids, values = array("i"), array("f")
        for row, at, token, k in entries:
            handles.append(row.request.handle)
            positions.append(at)
            ranks.append(2)
            others = [(token + 1 + 7 * j) % self.vocab_size for j in range(k)]
            if k >= 2:
                others[1] = token
            ids.extend([token, *others])
            values.extend([-token / 1000, *(-(j + 1) / 10 for j in range(k))])
            indptr.append(len(ids))
        return Logprobs(
            *(column.tobytes() for column in (handles, positions, ranks, indptr, ids, values))
        )
