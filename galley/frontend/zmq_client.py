"""The client of engine processes: sends requests, applies outputs, outlives its engines.

Each request stays here until its last token is delivered: prompt, parameters, tokens so far. When
an engine dies, its requests go to the next incarnation with the tokens that they have; the engine
goes on behind them, and by the invariance rule with what it would have said. A request accepted
while no engine is up waits here, so that first sending and replay are one code path. A frame that
is lost on the way is missed (`engine.link`); what follows is the same replay in a new session.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq

from galley.engine.control import Channel, EngineDown, EnginesLost, EngineUp
from galley.engine.link import Line, open_frame
from galley.engine.messages import (
    Abort,
    Add,
    Call,
    FromClient,
    FromEngine,
    Hello,
    Outputs,
    Ping,
    Ready,
    Reply,
    Resync,
    routing_id,
)
from galley.errors import EngineDead, InvalidRequest, RequestFailed, ServerError, Unsupported
from galley.frontend.client import RequestStream
from galley.frontend.input_processor import InputProcessor, Limits
from galley.frontend.output_processor import OutputProcessor, RequestState, Sequence
from galley.frontend.probation import Probation
from galley.frontend.prompts import Prompt
from galley.request import Request, SamplingParams

log = logging.getLogger(__name__)

#: Messages applied before the event loop gets a turn.
BURST = 16
#: Seconds between two looks at whether engines still hear us.
TICK = 1.0


@dataclass(frozen=True, slots=True)
class LauncherLink:
    """What a frontend process gets from its launcher.

    Attributes:
        channel: control messages, and the lifeline.
        client_index: number of this frontend, never used twice in a launcher's life.
        directory: private folder of the sockets; whoever notices the launcher's death removes it.
    """

    channel: Channel
    client_index: int
    directory: str | None = None


@dataclass(slots=True)
class Engine:
    """One engine: its present incarnation and what was asked of it.

    Attributes:
        socket: None while there is no incarnation to speak to.
        line: the session with it.
        ready: None until that incarnation has loaded its model and opened the session.
        reported: the last incarnation that the observer was told of.
        load: sequences that it has, by its last word and what was sent since.
    """

    index: int
    epoch: int = 0
    reported: int = 0
    socket: zmq.Socket[bytes] | None = None
    line: Line = field(default_factory=lambda: Line(0))
    ready: Ready | None = None
    load: int = 0
    calls: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    probation: Probation = field(default_factory=Probation)


def has_arrived(socket: zmq.Socket[bytes]) -> bool:
    """There is a message to receive (asking also re-arms the socket's file descriptor)."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


class ZmqClient:
    """An `EngineClient` over ZMQ. `start` it inside the event loop before the first request.

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
        self._context = zmq.Context(1)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(FromEngine).decode
        self._engines: dict[int, Engine] = {}
        self._batch_invariant: bool | None = None
        self._lost: str | None = None
        self._next_call = 0
        self._settled = asyncio.Event()

    def start(self) -> None:
        """Listen to the launcher; engines come as it names them."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._link.channel.fileno(), self._on_control)
        self._ticker = self._loop.call_later(TICK, self._tick)

    def close(self) -> None:
        """End what is in flight and let go of all sockets; nothing is accepted from now on."""
        self._lost = "the server is shutting down."
        for state in {id(s.state): s.state for s in self._outputs.sequences.values()}.values():
            self._send_aborts(state, self._outputs.fail(state, EngineDead(self._lost)))
        self._loop.remove_reader(self._link.channel.fileno())
        self._ticker.cancel()
        for engine in self._engines.values():
            self._disconnect(engine)
        self._context.term()

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
        """Return once an engine accepts requests. Raises EngineDead if none will come."""
        while not self.healthy:
            if self._lost is not None:
                raise EngineDead(self._lost)
            self._settled.clear()
            await self._settled.wait()

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        arrival_time: float | None = None,
        add_special_tokens: bool = True,
    ) -> RequestStream:
        """Accept a request: see `EngineClient`."""
        if self._lost is not None:
            raise EngineDead(self._lost)
        if params.logits_processors:
            raise Unsupported(
                "logits_processors are Python functions: they act in LLM, not over the network.",
                field="logits_processors",
            )
        submission = self._inputs.process(
            prompt,
            params,
            request_id,
            priority=priority,
            arrival_time=arrival_time,
            add_special_tokens=add_special_tokens,
        )
        state = self._outputs.add(submission)
        self._place([state])
        return RequestStream(state, self._cancel)

    def abort(self, request_id: str) -> None:
        """End requests of this id: their readers get a last output with "abort"."""
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
        waiting = []
        for engine in self._engines.values():
            self._next_call += 1
            future = self._loop.create_future()
            engine.calls[self._next_call] = future
            waiting.append(future)
            self._send(engine, Call(self._next_call, method, list(args)))
        return list(await asyncio.gather(*waiting))

    # ------------------------------------------------------------------ sending

    def _send(self, engine: Engine, message: FromClient) -> None:
        self._post(engine, engine.line.wrap(self._encode(message)))

    def _post(self, engine: Engine, frames: list[bytes]) -> None:
        socket = engine.socket
        if socket is None:
            return
        socket.send_multipart(frames, zmq.NOBLOCK)
        # Sending may have consumed the edge that would have announced an arrival.
        if has_arrived(socket):
            self._loop.call_soon(self._on_readable, engine)

    def _place(self, states: Iterable[RequestState]) -> None:
        """Send states to the least loaded engine that is up; without one they stay unplaced."""
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
                if s.finish_reason is None and not engine.probation.holds(s.request.handle)
            ]
        for index, batch in batches.items():
            if batch:
                self._send(self._engines[index], Add(batch))

    @staticmethod
    def _request(sequence: Sequence, engine: Engine) -> Request:
        """The request as this incarnation gets it: with the tokens that it has."""
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
            self._send(self._engines[state.engine_index], Abort(handles))

    # ------------------------------------------------------------------ engines come and go

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
        engine = self._engines.setdefault(up.index, Engine(up.index))
        self._disconnect(engine)
        engine.epoch = up.epoch
        try:
            socket = self._context.socket(zmq.DEALER)
        except zmq.ZMQError as e:
            # Clients' connections hold all file descriptors; they will give some back.
            log.warning("cannot connect to engine %d yet: %s", up.index, e)
            self._loop.call_later(TICK, self._connect_late, up)
            return
        # The engine's outputs must never be dropped, nor a request block the event loop: what is
        # in flight is bounded by the requests themselves.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.setsockopt(zmq.ROUTING_ID, routing_id(self._link.client_index))
        socket.connect(up.address)
        engine.socket = socket
        self._loop.add_reader(socket.fileno(), self._on_readable, engine)
        self._open_session(engine)
        self._on_readable(engine)

    def _connect_late(self, up: EngineUp) -> None:
        engine = self._engines[up.index]
        if self._lost is None and engine.epoch == up.epoch and engine.socket is None:
            self._connect(up)

    def _open_session(self, engine: Engine) -> None:
        """Start over with an incarnation: once it is ready it gets what it shall compute."""
        self._forget_session(engine)
        engine.line = Line(engine.line.session + 1)
        self._send(engine, Hello(self._link.client_index))

    def _forget_session(self, engine: Engine) -> None:
        engine.ready = None
        for future in engine.calls.values():
            if not future.done():
                future.set_exception(EngineDead("the engine was lost over this call."))
        engine.calls.clear()

    def _disconnect(self, engine: Engine) -> None:
        self._forget_session(engine)
        if engine.socket is not None:
            self._loop.remove_reader(engine.socket.fileno())
            engine.socket.close()
            engine.socket = None

    def _tick(self) -> None:
        """Say hello again where no answer came; have the others show that nothing was lost."""
        self._ticker = self._loop.call_later(TICK, self._tick)
        for engine in self._engines.values():
            if engine.ready is None:
                hello = self._encode(Hello(self._link.client_index))
                self._post(engine, engine.line.wrap_as(0, hello))
            elif engine.calls or self.num_unfinished:
                self._send(engine, Ping())

    def _engine_down(self, down: EngineDown) -> None:
        engine = self._engines.get(down.index)
        if engine is None or engine.epoch != down.epoch:
            return
        self._disconnect(engine)
        if down.crashed:
            rows = {h: n for h, n in down.rows if h in self._outputs.sequences}
            guilty = engine.probation.crashed(rows)
            if guilty is not None:
                self._outputs.fail(
                    self._outputs.sequences[guilty].state,
                    RequestFailed("this request crashed the engine twice."),
                )
        else:
            engine.probation.killed()
        # With another engine up they need not wait for the next incarnation.
        self._place(self._orphans(engine.index))

    def _orphans(self, index: int) -> list[RequestState]:
        """States without an engine, in order of arrival; those of engine `index` lose theirs."""
        found: dict[int, RequestState] = {}
        for sequence in self._outputs.sequences.values():
            state = sequence.state
            if state.engine_index == index:
                state.engine_index = None
            if state.engine_index is None:
                found[id(state)] = state
        return list(found.values())

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

    def _on_readable(self, engine: Engine) -> None:
        socket = engine.socket
        for _ in range(BURST):
            # A message may have replaced the socket that it came from.
            if socket is None or engine.socket is not socket:
                return
            if not has_arrived(socket):
                return
            self._on_frames(engine, socket.recv_multipart(zmq.NOBLOCK))
        self._loop.call_soon(self._on_readable, engine)

    def _on_frames(self, engine: Engine, frames: list[bytes]) -> None:
        header, payload = frames if len(frames) == 2 else (b"", b"")
        frame = open_frame(header, payload)
        arrival = "gap" if frame is None else engine.line.arrival(frame)
        if arrival == "due":
            self._receive(engine, self._decode(payload))
        elif arrival == "gap":
            self._open_session(engine)

    def _receive(self, engine: Engine, message: FromEngine) -> None:
        if isinstance(message, Outputs):
            if message.epoch == engine.epoch:
                self._on_outputs(engine, message)
        elif isinstance(message, Ready):
            if message.epoch == engine.epoch:
                self._on_ready(engine, message)
        elif isinstance(message, Reply):
            self._on_reply(engine, message)
        elif isinstance(message, Resync):
            self._open_session(engine)

    def _on_outputs(self, engine: Engine, message: Outputs) -> None:
        if message.stats is not None:
            engine.load = message.stats.num_running + message.stats.num_waiting
        aborts = self._outputs.process(message)
        if aborts:
            self._send(engine, Abort(aborts))
        if engine.probation.active:
            self._next_trial(engine)

    def _on_ready(self, engine: Engine, message: Ready) -> None:
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
        self._next_trial(engine)
        self._settled.set()

    def _next_trial(self, engine: Engine) -> None:
        sequences = self._outputs.sequences
        live = {
            h: len(s.state.submission.prompt_token_ids) + len(s.token_ids)
            for h, s in sequences.items()
        }
        handle = engine.probation.next_trial(live)
        if handle is not None:
            self._send(engine, Add([self._request(sequences[handle], engine)]))

    @staticmethod
    def _on_reply(engine: Engine, message: Reply) -> None:
        future = engine.calls.pop(message.id, None)
        if future is None or future.done():
            return
        if message.error is not None:
            kind = InvalidRequest if message.refused else ServerError
            future.set_exception(kind(message.error))
        else:
            future.set_result(message.result)
