"""A front end's connection to one engine, which comes and goes with the engine's incarnations.

Every message to and from the engine passes here. A connection that breaks is opened again, and the
owner (`remote_client`) then sends its requests again; it also knows what messages mean and which
request goes where. The event loop reads the socket directly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from galley.engine.control import EngineUp
from galley.engine.frames import FrameSocket, connect
from galley.errors import EngineDead, InvalidRequest, ServerError
from galley.frontend.crash_search import CrashSearch
from galley.messages import Call, FromClient, FromEngine, Ready, Reply

log = logging.getLogger(__name__)

#: Seconds before a connection that has broken is opened again, and between attempts that fail.
REOPEN, RETRY = 0.1, 1.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FromEngine).decode


class Connection:
    """One engine: its present incarnation, and the calls that it has not answered.

    Attributes:
        epoch: the present incarnation.
        reported: the last incarnation reported to the observer.
        ready: None until that incarnation has loaded its model and opened the session.
        load: number of sequences that it has: its last report plus what was sent since.
        crash_search: for the request that crashes it.

    Args:
        receive: called with each message but replies to calls.
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
        self.crash_search = CrashSearch()
        self._client_index = client_index
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._socket: FrameSocket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._next_call = 0

    # ------------------------------------------------------------------ incarnations

    def connect(self, up: EngineUp) -> None:
        """Open a session with this incarnation; its `Ready` comes once its model is loaded."""
        self.disconnect()
        self.epoch = up.epoch
        try:
            socket = connect(up.address, self._client_index)
        except OSError as e:
            # It is dead, which the launcher will report, or all file descriptors are in use by
            # clients' connections, some of which will end.
            log.warning("cannot connect to engine %d: %s", up.index, e)
            self._retry = self._loop.call_later(RETRY, self.connect, up)
            return
        self._socket = socket
        self._loop.add_reader(socket.fileno(), self._on_readable, up, socket)
        self._watch_unsent(socket)

    def disconnect(self) -> None:
        """End the session and any attempt to open one; unanswered calls fail."""
        self.ready = None
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDead("the engine was lost over this call."))
        self._calls.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None

    # ------------------------------------------------------------------ sending

    def send(self, message: FromClient) -> None:
        """Send a message; it is dropped while there is no connection."""
        if self._socket is not None:
            self._socket.send(_encode(message))
            self._watch_unsent(self._socket)

    def call(self, method: str, args: list[Any]) -> asyncio.Future[Any]:
        """Have the engine run `method`. The future raises what `RemoteClient.call` says."""
        self._next_call += 1
        future = self._calls[self._next_call] = self._loop.create_future()
        self.send(Call(self._next_call, method, args))
        return future

    def _watch_unsent(self, socket: FrameSocket) -> None:
        if socket.unsent:
            self._loop.add_writer(socket.fileno(), self._on_writable, socket)

    def _on_writable(self, socket: FrameSocket) -> None:
        socket.flush()
        if not socket.unsent:
            self._loop.remove_writer(socket.fileno())

    # ------------------------------------------------------------------ receiving

    def _on_readable(self, up: EngineUp, socket: FrameSocket) -> None:
        try:
            payloads = socket.receive()
        except EOFError:
            # It is dead, which the launcher will report, or it has disconnected this client.
            self.disconnect()
            self._retry = self._loop.call_later(REOPEN, self.connect, up)
            return
        for payload in payloads:
            # A message may have ended the session that it came from.
            if self._socket is not socket:
                return
            message = _decode(payload)
            if isinstance(message, Reply):
                self._on_reply(message)
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
