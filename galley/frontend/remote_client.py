"""The client of engine processes: sends requests, applies outputs, outlives its engines.

Each request stays here until its last token is delivered: prompt, parameters, tokens so far. When
an engine dies, its requests are sent to the next incarnation with the tokens that they have; the
engine continues from there, by the invariance rule with the same tokens. A request accepted while
no engine is up waits here, so that first sending and replay are one code path. A connection
that breaks (`connection`) causes the same replay in a new session.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from galley.engine.control import Channel, EngineDown, EnginesLost, EngineUp
from galley.errors import EngineDead, RequestFailed, Unsupported
from galley.frontend.client import RequestStream
from galley.frontend.connection import Connection
from galley.frontend.input_processor import (
    InputProcessor,
    Limits,
    Submission,
    TruncationSide,
)
from galley.frontend.output_processor import OutputProcessor, RequestState, Sequence
from galley.frontend.pooling import PendingVector
from galley.frontend.prompts import Prompt
from galley.messages import Abort, Add, FromEngine, Outputs, Ready
from galley.request import Adapter, PoolingParams, Request, SamplingParams, StructuredOutputsParams


@dataclass(frozen=True, slots=True)
class LauncherLink:
    """The connection of a frontend process to its launcher.

    Attributes:
        channel: control messages, and the lifeline.
        client_index: number of this frontend, unique in the launcher's lifetime.
        directory: private folder of the sockets, removed after the launcher's death.
    """

    channel: Channel
    client_index: int
    directory: str | None = None


class RemoteClient:
    """An `EngineClient` over sockets. `start` it inside the event loop before the first request.

    Args:
        on_orphaned: called when the launcher is gone; the default ends the process.
    """

    def __init__(
        self,
        link: LauncherLink,
        inputs: InputProcessor,
        outputs: OutputProcessor,
        on_orphaned: Callable[[], None] | None = None,
    ) -> None:
        self._link = link
        self._inputs = inputs
        self._outputs = outputs
        self._on_orphaned = on_orphaned or self._die_with_launcher
        self._engines: dict[int, Connection] = {}
        self._batch_invariant: bool | None = None
        self._lost: str | None = None
        self._settled = asyncio.Event()
        #: requests that pool and have not been sent
        self._unsent: list[RequestState] = []

    def start(self) -> None:
        """Listen to the launcher, which announces engines."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._link.channel.fileno(), self._on_control)

    def close(self) -> None:
        """Fail all requests and close all sockets; nothing is accepted from now on."""
        self._lost = "the server is shutting down."
        for state in {id(s.state): s.state for s in self._outputs.sequences.values()}.values():
            self._send_aborts(state, self._outputs.fail(state, EngineDead(self._lost)))
        self._loop.remove_reader(self._link.channel.fileno())
        for engine in self._engines.values():
            engine.disconnect()

    # ------------------------------------------------------------------ EngineClient

    @property
    def limits(self) -> Limits:
        return self._inputs.limits

    @property
    def healthy(self) -> bool:
        return any(e.ready is not None for e in self._engines.values())

    @property
    def batch_invariant(self) -> bool | None:
        return self._batch_invariant

    @property
    def num_unfinished(self) -> int:
        return len(self._outputs.sequences)

    async def wait_healthy(self) -> None:
        """Return once an engine accepts requests. Raises EngineDead if none will be started."""
        while not self.healthy:
            if self._lost is not None:
                raise EngineDead(self._lost)
            self._settled.clear()
            await self._settled.wait()

    async def check_constraint(self, params: StructuredOutputsParams) -> None:
        if not self._inputs.knows(params):
            await asyncio.to_thread(self._inputs.constraint_of, params)

    def prepare(
        self, prompt: Prompt, params: SamplingParams, request_id: str, **options: Any
    ) -> Submission:
        return self._inputs.process(prompt, params, request_id, **options)

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
    ) -> RequestStream:
        """Accept a request: see `EngineClient`."""
        if params.logits_processors:
            raise Unsupported(
                "logits_processors are Python functions: they act in LLM, not over the network.",
                field="logits_processors",
            )
        state = self._accept(
            prompt,
            params,
            request_id,
            priority=priority,
            arrival_time=arrival_time,
            add_special_tokens=add_special_tokens,
            truncation_side=truncation_side,
            adapter=adapter,
        )
        self._place([state])
        return RequestStream(state, self._cancel)

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
        """Accept a request: see `EngineClient`. Those accepted together are sent in one message."""
        state = self._accept(
            prompt,
            params,
            request_id,
            priority=priority,
            add_special_tokens=add_special_tokens,
            truncation_side=truncation_side,
            adapter=adapter,
        )
        if not self._unsent:
            self._loop.call_soon(self._send_unsent)
        self._unsent.append(state)
        return PendingVector(state, self._cancel)

    def _send_unsent(self) -> None:
        states, self._unsent = self._unsent, []
        # An engine may have come up in between, and have got those without one.
        self._place(state for state in states if state.engine_index is None and not state.ended)

    def _accept(
        self,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        request_id: str,
        **options: Any,
    ) -> RequestState:
        """Check a request. Raises InvalidRequest, Unsupported, EngineDead."""
        if self._lost is not None:
            raise EngineDead(self._lost)
        return self._outputs.add(self._inputs.process(prompt, params, request_id, **options))

    def abort(self, request_id: str) -> None:
        """Abort the requests with this id; their readers get a last output with "abort"."""
        states = {
            id(s.state): s.state
            for s in self._outputs.sequences.values()
            if s.state.submission.request_id == request_id
        }
        for state in states.values():
            self._cancel(state)

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Run `method` on every engine; one result each.

        Raises:
            EngineDead: an engine is down, or dies over it.
            ServerError: the engine refused.
        """
        if not self._engines or any(e.ready is None for e in self._engines.values()):
            raise EngineDead("the engine is not up.")
        replies = [engine.call(method, list(args)) for engine in self._engines.values()]
        return list(await asyncio.gather(*replies))

    # ------------------------------------------------------------------ sending

    def _place(self, states: Iterable[RequestState]) -> None:
        """Send requests to the least loaded engine that is up; without one they wait."""
        batches: dict[int, list[Request]] = {}
        up = [e for e in self._engines.values() if e.ready is not None]
        for state in states if up else ():
            engine = min(up, key=lambda e: e.load)
            state.engine_index = engine.index
            engine.load += len(state.sequences)
            batch = batches.setdefault(engine.index, [])
            batch += [
                self._request(s, engine)
                for s in state.sequences
                if s.finish_reason is None and not engine.crash_search.holds(s.request.handle)
            ]
        for index, batch in batches.items():
            if batch:
                self._engines[index].send(Add(batch))

    @staticmethod
    def _request(sequence: Sequence, engine: Connection) -> Request:
        """The request for this incarnation, with the tokens that it has so far."""
        assert engine.ready is not None
        request = sequence.request
        return msgspec.structs.replace(
            request,
            epoch=engine.epoch,
            output_token_ids=array("i", sequence.token_ids).tobytes(),
            max_total_tokens=min(request.max_total_tokens, engine.ready.max_model_len),
        )

    def _cancel(self, state: RequestState) -> None:
        self._send_aborts(state, self._outputs.drop(state))

    def _send_aborts(self, state: RequestState, handles: list[int]) -> None:
        if handles and state.engine_index is not None:
            self._engines[state.engine_index].send(Abort(handles))

    # ------------------------------------------------------------------ engines

    def _on_control(self) -> None:
        try:
            messages = self._link.channel.receive()
        except EOFError:
            self._loop.remove_reader(self._link.channel.fileno())
            self._on_orphaned()
            return
        for message in messages:
            if isinstance(message, EngineUp):
                self._connect(message)
            elif isinstance(message, EngineDown):
                self._engine_down(message)
            elif isinstance(message, EnginesLost):
                self._engines_lost(message.message)

    def _connect(self, up: EngineUp) -> None:
        engine = self._engines.get(up.index)
        if engine is None:
            engine = Connection(up.index, self._link.client_index, self._receive)
            self._engines[up.index] = engine
        engine.connect(up)

    def _engine_down(self, down: EngineDown) -> None:
        engine = self._engines.get(down.index)
        if engine is None or engine.epoch != down.epoch:
            return
        engine.disconnect()
        if down.crashed:
            rows = {h: n for h, n in down.rows if h in self._outputs.sequences}
            culprit = engine.crash_search.crashed(rows)
            if culprit is not None:
                self._outputs.fail(
                    self._outputs.sequences[culprit].state,
                    RequestFailed("this request crashed the engine twice."),
                )
        else:
            engine.crash_search.killed()
        # Another engine that is up can take them at once.
        self._place(self._orphans(engine.index))

    def _orphans(self, index: int) -> list[RequestState]:
        """Requests without an engine, in order of arrival, including those of engine `index`."""
        orphans: dict[int, RequestState] = {}
        for sequence in self._outputs.sequences.values():
            state = sequence.state
            if state.engine_index == index:
                state.engine_index = None
            if state.engine_index is None:
                orphans[id(state)] = state
        return list(orphans.values())

    def _engines_lost(self, message: str) -> None:
        self._lost = message
        for sequence in list(self._outputs.sequences.values()):
            self._outputs.fail(sequence.state, EngineDead(message))
        self._settled.set()

    def _die_with_launcher(self) -> None:
        if self._link.directory is not None:
            shutil.rmtree(self._link.directory, ignore_errors=True)
        os._exit(1)

    # ------------------------------------------------------------------ receiving

    def _receive(self, engine: Connection, message: FromEngine) -> None:
        if isinstance(message, Outputs):
            if message.epoch == engine.epoch:
                self._on_outputs(engine, message)
        elif isinstance(message, Ready) and message.epoch == engine.epoch:
            self._on_ready(engine, message)

    def _on_outputs(self, engine: Connection, message: Outputs) -> None:
        if message.stats is not None:
            engine.load = message.stats.num_running + message.stats.num_waiting
        aborts = self._outputs.process(message)
        if aborts:
            engine.send(Abort(aborts))
        if engine.crash_search.active:
            self._send_next_suspect(engine)

    def _on_ready(self, engine: Connection, message: Ready) -> None:
        engine.ready = message
        engine.load = 0
        self._batch_invariant = message.batch_invariant
        self._inputs.limits = dataclasses.replace(
            self._inputs.limits, max_model_len=message.max_model_len
        )
        if self._outputs.observer is not None and engine.epoch != engine.reported:
            self._outputs.observer.ready(message)
        engine.reported = engine.epoch
        self._place(self._orphans(engine.index))
        self._send_next_suspect(engine)
        self._settled.set()

    def _send_next_suspect(self, engine: Connection) -> None:
        sequences = self._outputs.sequences
        live = {
            h: len(s.state.submission.prompt_token_ids) + len(s.token_ids)
            for h, s in sequences.items()
        }
        handle = engine.crash_search.next_candidate(live)
        if handle is not None:
            engine.send(Add([self._request(sequences[handle], engine)]))
