"""A front end's connection to one engine: wires come and go with the engine's incarnations.

Every message to and from the engine passes here, in numbered frames (`engine.link`); where one was
lost, the next session is opened. The event loop reads the socket itself. What a message means, and
which request goes where, its owner (`remote_client`) knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from galley.engine.control import EngineUp
from galley.engine.frames import FrameSocket, connect
from galley.engine.link import Line, open_frame
from galley.errors import EngineDead, InvalidRequest, ServerError
from galley.frontend.probation import Probation
from galley.messages import (
    Call,
    FromClient,
    FromEngine,
    Hello,
    Ready,
    Reply,
    Resync,
)

log = logging.getLogger(__name__)

#: Seconds between two tries to connect.
RETRY = 1.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FromEngine).decode


class Connection:
    """One engine: its present incarnation and what was asked of it.

    Attributes:
        epoch: the incarnation that is spoken to.
        reported: the last incarnation that the observer was told of.
        ready: None until that incarnation has loaded its model and opened the session.
        load: sequences that it has, by its last word and what was sent since.
        probation: who may have killed it.

    Args:
        receive: told of each message but replies to calls.
    """

    def __init__(
        self,
        index: int,
        client_index: int,
        receive: Callable[[Connection, FromEngine], None],
    ) -> None:
        self.index = index
        self.epoch = 0
        self.reported = 0
        self.ready: Ready | None = None
        self.load = 0
        self.probation = Probation()
        self._client_index = client_index
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._wire: FrameSocket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._line = Line(0)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._next_call = 0

    @property
    def waits_for_reply(self) -> bool:
        return bool(self._calls)

    # ------------------------------------------------------------------ incarnations

    def connect(self, up: EngineUp) -> None:
        """Speak to this incarnation from now on."""
        self.disconnect()
        self.epoch = up.epoch
        try:
            wire = connect(up.address, self._client_index)
        except OSError as e:
            # It is dead, which its launcher will tell; or clients' connections hold all file
            # descriptors: they will give some back.
            log.warning("cannot connect to engine %d: %s", up.index, e)
            self._retry = self._loop.call_later(RETRY, self.connect, up)
            return
        self._wire = wire
        self._loop.add_reader(wire.fileno(), self._on_readable, up, wire)
        self._open_session()

    def disconnect(self) -> None:
        """Let go of the incarnation; calls that it has not answered fail."""
        self._forget_session()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._wire is not None:
            self._loop.remove_reader(self._wire.fileno())
            self._loop.remove_writer(self._wire.fileno())
            self._wire.close()
            self._wire = None

    def _open_session(self) -> None:
        """Start over with the incarnation: once it is ready it gets what it shall compute."""
        self._forget_session()
        self._line = Line(self._line.session + 1)
        self.send(Hello(self._client_index))

    def _forget_session(self) -> None:
        self.ready = None
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDead("the engine was lost over this call."))
        self._calls.clear()

    # ------------------------------------------------------------------ sending

    def send(self, message: FromClient) -> None:
        """Send the next message; one that nobody is there to get is dropped."""
        self._post(self._line.wrap(_encode(message)))

    def greet_again(self) -> None:
        """Say hello once more, in case that the first was lost."""
        self._post(self._line.wrap_as(0, _encode(Hello(self._client_index))))

    def call(self, method: str, args: list[Any]) -> asyncio.Future[Any]:
        """Have the engine run `method`. The future raises what `RemoteClient.call` says."""
        self._next_call += 1
        future = self._calls[self._next_call] = self._loop.create_future()
        self.send(Call(self._next_call, method, args))
        return future

    def _post(self, frames: list[bytes]) -> None:
        wire = self._wire
        if wire is None:
            return
        wire.send(frames)
        if wire.unsent:
            self._loop.add_writer(wire.fileno(), self._on_writable, wire)

    def _on_writable(self, wire: FrameSocket) -> None:
        wire.flush()
        if not wire.unsent:
            self._loop.remove_writer(wire.fileno())

    # ------------------------------------------------------------------ receiving

    def _on_readable(self, up: EngineUp, wire: FrameSocket) -> None:
        try:
            frames = wire.receive()
        except EOFError:
            # It is dead, or it has hung up.
            self.disconnect()
            self._retry = self._loop.call_later(RETRY, self.connect, up)
            return
        for header, payload in frames:
            # A message may have replaced the wire that it came from.
            if self._wire is not wire:
                return
            self._on_frame(header, payload)

    def _on_frame(self, header: bytes, payload: bytes) -> None:
        frame = open_frame(header, payload)
        arrival = "gap" if frame is None else self._line.arrival(frame)
        if arrival == "due":
            self._on_message(_decode(payload))
        elif arrival == "gap":
            self._open_session()

    def _on_message(self, message: FromEngine) -> None:
        if isinstance(message, Reply):
            self._on_reply(message)
        elif isinstance(message, Resync):
            self._open_session()
        else:
            self._receive(self, message)

    def _on_reply(self, message: Reply) -> None:
        future = self._calls.pop(message.id, None)
        if future is None or future.done():
            return
        if message.error is not None:
            kind = InvalidRequest if message.refused else ServerError
            future.set_exception(kind(message.error))
        else:
            future.set_result(message.result)
