"""A front end's connection to one engine: sockets come and go with the engine's incarnations.

Every message to and from the engine passes here, in numbered frames (`engine.link`); where one was
lost, the next session is opened. What a message means, and which request goes where, its owner
(`zmq_client`) knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from galley.engine.control import EngineUp
from galley.engine.link import Line, open_frame
from galley.engine.messages import (
    Call,
    FromClient,
    FromEngine,
    Hello,
    Ready,
    Reply,
    Resync,
    routing_id,
)
from galley.errors import EngineDead, InvalidRequest, ServerError
from galley.frontend.probation import Probation

log = logging.getLogger(__name__)

#: Messages applied before the event loop gets a turn.
BURST = 16
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
        context: zmq.Context[Any],
        receive: Callable[[Connection, FromEngine], None],
    ) -> None:
        self.index = index
        self.epoch = 0
        self.reported = 0
        self.ready: Ready | None = None
        self.load = 0
        self.probation = Probation()
        self._client_index = client_index
        self._context = context
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] | None = None
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
            socket = self._context.socket(zmq.DEALER)
        except zmq.ZMQError as e:
            # Clients' connections hold all file descriptors; they will give some back.
            log.warning("cannot connect to engine %d yet: %s", up.index, e)
            self._loop.call_later(RETRY, self._connect_late, up)
            return
        # The engine's outputs must never be dropped, nor a request block the event loop: what is
        # in flight is bounded by the requests themselves.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.setsockopt(zmq.ROUTING_ID, routing_id(self._client_index))
        socket.connect(up.address)
        self._socket = socket
        self._loop.add_reader(socket.fileno(), self._on_readable)
        self._open_session()
        self._on_readable()

    def _connect_late(self, up: EngineUp) -> None:
        if not self._context.closed and self.epoch == up.epoch and self._socket is None:
            self.connect(up)

    def disconnect(self) -> None:
        """Let go of the incarnation; calls that it has not answered fail."""
        self._forget_session()
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

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
        """Have the engine run `method`. The future raises what `ZmqClient.call` says."""
        self._next_call += 1
        future = self._calls[self._next_call] = self._loop.create_future()
        self.send(Call(self._next_call, method, args))
        return future

    def _post(self, frames: list[bytes]) -> None:
        if self._socket is None:
            return
        self._socket.send_multipart(frames, zmq.NOBLOCK)
        # Sending may have consumed the edge that would have announced an arrival.
        if _has_arrived(self._socket):
            self._loop.call_soon(self._on_readable)

    # ------------------------------------------------------------------ receiving

    def _on_readable(self) -> None:
        socket = self._socket
        for _ in range(BURST):
            # A message may have replaced the socket that it came from.
            if socket is None or self._socket is not socket or not _has_arrived(socket):
                return
            self._on_frames(socket.recv_multipart(zmq.NOBLOCK))
        self._loop.call_soon(self._on_readable)

    def _on_frames(self, frames: list[bytes]) -> None:
        header, payload = frames if len(frames) == 2 else (b"", b"")
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


def _has_arrived(socket: zmq.Socket[bytes]) -> bool:
    """There is a message to receive (asking also re-arms the socket's file descriptor)."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
