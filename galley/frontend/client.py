"""The engine client: its interface, and a stream of one request's outputs.

`InprocClient` owns an engine core and is driven step by step (offline); `RemoteClient`
(remote_client.py) is connected to engine processes and outlives them (server).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from galley.frontend.input_processor import (
    InputProcessor,
    Limits,
    Submission,
    TruncationSide,
)
from galley.frontend.interrupt import uninterrupted
from galley.frontend.output_processor import OutputProcessor, RequestState, Tap
from galley.frontend.pooling import PendingVector
from galley.frontend.prompts import Prompt
from galley.outputs import PoolingRequestOutput, RequestOutput
from galley.request import Adapter, PoolingParams, SamplingParams, StructuredOutputsParams

if TYPE_CHECKING:
    from galley.engine.core import Core


#: Most seconds of a sleep while constraints compile.
COMPILING = 0.1


class EngineClient(Protocol):
    """The interface of a server to its engines.

    `generate` checks the request at once (InvalidRequest, Unsupported: before anything is sent to
    the caller) and returns a stream. Each request gets exactly one end: a last output with
    `finished`, or one raised error (RequestFailed, EngineDead). Closing or dropping the stream,
    or cancelling the task that reads it, aborts the request.
    """

    @property
    def limits(self) -> Limits: ...

    @property
    def healthy(self) -> bool:
        """An engine is up and accepts requests."""

    @property
    def batch_invariant(self) -> bool | None:
        """An answer does not depend on what else is computed; None until an engine has reported."""

    @property
    def num_unfinished(self) -> int:
        """Sequences in flight."""

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        arrival_time: float | None = None,
        add_special_tokens: bool = True,
        truncation_side: TruncationSide = "left",
        adapter: Adapter | None = None,
    ) -> RequestStream: ...

    def prepare(
        self, prompt: Prompt, params: SamplingParams, request_id: str, **options: Any
    ) -> Submission:
        """The submission that `generate` would send, checked."""

    def pool(
        self,
        prompt: Prompt,
        params: PoolingParams,
        request_id: str,
        *,
        priority: int = 0,
        add_special_tokens: bool = True,
        truncation_side: TruncationSide = "left",
        adapter: Adapter | None = None,
    ) -> PendingVector:
        """As `generate`, for a request that ends with a vector."""

    async def check_constraint(self, params: StructuredOutputsParams) -> None:
        """Compile a constraint that was not checked lately, in a thread. Raises InvalidRequest,
        Unsupported.
        """

    def abort(self, request_id: str) -> None:
        """Abort a request; its reader gets a last output with "abort"."""

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Run an operation on every engine; one result each. Raises EngineDead, ServerError."""

    async def wait_healthy(self) -> None: ...


class RequestStream(AsyncIterator[RequestOutput]):
    """The outputs of one request; ends with the one that is finished, or raises its error."""

    def __init__(self, state: RequestState, cancel: Callable[[RequestState], None]) -> None:
        self.state = state
        self._cancel = cancel
        self._updates = asyncio.Event()
        self._closed = False
        state.notify = self._updates.set

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.state.submission.prompt_token_ids

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> RequestOutput:
        while not self._closed:
            self._updates.clear()
            output = self.poll()
            if output is not None:
                return output
            try:
                await self._updates.wait()
            except BaseException:
                self.close()
                raise
        raise StopAsyncIteration

    def poll(self) -> RequestOutput | None:
        """The output that is ready, or None. Raises the error with which the request ended."""
        if self._closed:
            return None
        try:
            output = self.state.take()
        except BaseException:
            self.close()
            raise
        if output is not None:
            self._closed = output.finished
        return output

    def set_tap(self, tap: Tap | None) -> None:
        """Write plain text to `tap` as it is generated, instead of notifying of updates; see
        `RequestState`. None: stop that.
        """
        self.state.set_tap(tap)

    def on_update(self, notify: Callable[[], None]) -> None:
        """Call `notify` whenever there is something to `poll`, and now if there is: for a reader
        without a task of its own.
        """
        self.state.notify = notify
        if self.state.changed or self.state.ended:
            notify()

    def close(self) -> None:
        """Abort the request unless it has ended; safe to call again."""
        self._closed = True
        if not self.state.ended:
            self._cancel(self.state)

    async def aclose(self) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self.close()


class InprocClient:
    """Requests to an engine core in this process, which is driven by reading outputs.

    It cannot outlive its engine: an exception in a step ends all requests in flight.
    """

    def __init__(self, core: Core, inputs: InputProcessor, outputs: OutputProcessor) -> None:
        self.core = core
        self.inputs = inputs
        self.outputs = outputs

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        request_id: str,
        *,
        priority: int = 0,
        add_special_tokens: bool = True,
        truncation_side: TruncationSide = "left",
        adapter: Adapter | None = None,
    ) -> RequestState:
        """Check a request and pass it to the engine. Raises InvalidRequest, Unsupported."""
        submission = self.inputs.process(
            prompt,
            params,
            request_id,
            priority=priority,
            add_special_tokens=add_special_tokens,
            clip_max_tokens=True,
            truncation_side=truncation_side,
            adapter=adapter,
        )
        with uninterrupted():
            state = self.outputs.add(submission)
            self.core.add(submission.requests)
        return state

    def cancel(self, state: RequestState) -> None:
        """End a request without an output."""
        handles = self.outputs.drop(state)
        if handles:
            self.core.abort(handles)

    def step(self) -> None:
        """Run one step of the engine and apply its outputs; Ctrl-C is delayed until its end."""
        with uninterrupted():
            self.core.wait(COMPILING)
            for _, outputs in self.core.step():
                aborts = self.outputs.process(outputs)
                if aborts:
                    self.core.abort(aborts)

    def stream(self, state: RequestState) -> Iterator[RequestOutput]:
        """Step until the request has ended; yields its outputs as they are produced."""
        try:
            while not state.ended:
                self.step()
                output = state.take()
                if output is not None:
                    yield output
        finally:
            self.cancel(state)

    def pool(self, prompts: Iterable[Prompt], params: PoolingParams) -> list[PoolingRequestOutput]:
        """A vector of each prompt, in order. Raises the first error."""
        states = [self.add(prompt, params, str(i)) for i, prompt in enumerate(prompts)]
        try:
            while not all(state.ended for state in states):
                self.step()
            outputs = [state.take_pooled() for state in states]
        finally:
            for state in states:
                self.cancel(state)
        return [output for output in outputs if output is not None]

    def shutdown(self) -> None:
        self.core.shutdown()
