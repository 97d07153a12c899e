"""The engine core as a process: sockets in, steps, sockets out.

One thread does everything. Between steps, and once while the device works, it takes what clients
have sent; with nothing to compute it sleeps in poll. Outputs of a step go out as one message per
client. What the messages mean is the core's business.
"""

from __future__ import annotations

import select
from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from galley.engine.control import Channel, ClientGone
from galley.engine.frames import FrameServer
from galley.engine.heartbeat import StatusFile
from galley.engine.link import Frame, Line, open_frame
from galley.errors import InvalidRequest
from galley.messages import (
    Abort,
    Add,
    Call,
    FromClient,
    FromEngine,
    Hello,
    Outputs,
    Ping,
    Pong,
    Ready,
    Reply,
    Resync,
)
from galley.request import Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What a client may call by name: methods of the core, and of its pausing. Any other name goes to
#: the executor's workers.
CORE_CALLS = ("reset_prefix_cache", "check_integrity", "start_profile", "stop_profile")
PAUSING_CALLS = (
    *("pause", "resume", "is_paused", "drained", "abort_all"),
    *("sleep", "wake_up", "is_sleeping", "release_kv_cache_memory"),
)
#: Seconds of silence after which an idle engine looks after itself, and between two looks.
IDLE = 1.0
#: Steps between two looks at the launcher's channel while there is work.
CONTROL_EVERY = 16


class Core(Protocol):
    """What is needed of an engine core here."""

    executor: Any
    pausing: Any
    idle_tasks: Any
    on_plan: Callable[[NDArray[np.int64], NDArray[np.int64]], None] | None
    while_waiting: Callable[[], None] | None

    @property
    def has_work(self) -> bool: ...
    def add(self, requests: Iterable[Request]) -> None: ...
    def abort(self, handles: Iterable[int], client_index: int = 0) -> None: ...
    def step(self) -> list[tuple[int, Outputs]]: ...
    def shutdown(self) -> None: ...


class EngineProcess:
    """Drives a core by what its clients ask.

    Args:
        clients: where they call.
        ready: what each client is told when it says hello.
    """

    def __init__(
        self,
        core: Core,
        clients: FrameServer,
        channel: Channel,
        ready: Ready,
        status: StatusFile,
    ) -> None:
        self.core = core
        self.clients = clients
        self.channel = channel
        self.ready = ready
        self.status = status
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(FromClient).decode
        self._lines: dict[int, Line] = {}
        self._greetings: set[int] = set()
        self._live: dict[int, set[int]] = {}
        self._calls: list[tuple[int, Call]] = []
        self._orphaned = False
        core.on_plan = status.record
        core.while_waiting = self.receive

    def run(self) -> None:
        """Serve until the launcher is gone. An exception in a step ends the process: its requests
        live with their clients, and a fresh engine is a safer place for them.
        """
        core, status, steps = self.core, self.status, 0
        while not self._orphaned:
            if not core.has_work and not self._calls:
                status.mark_idle()
                self._idle()
                self._control()
            status.heartbeat()
            self.receive()
            self._answer_calls()
            if core.has_work or self._greetings:
                for client, outputs in core.step():
                    self._emit(client, outputs)
                self._greet()
                steps += 1
                if steps % CONTROL_EVERY == 0:
                    self._control()

    def _idle(self) -> None:
        """Sleep until something comes. Books that turn out to be wrong end the process: a fresh
        engine has right ones.
        """
        while not self.clients.wait(self.channel.fileno(), IDLE):
            for client, outputs in self.core.idle_tasks.run(list(self._lines)):
                self._send(client, outputs)

    # ------------------------------------------------------------------ in

    def receive(self) -> None:
        """Take all that clients have sent so far."""
        for client, (header, payload) in self.clients.receive():
            self._take(client, header, payload)

    def _take(self, client: int, header: bytes, payload: bytes) -> None:
        if self._is_due(client, open_frame(header, payload)):
            self._apply(client, self._decode(payload))

    def _is_due(self, client: int, frame: Frame | None) -> bool:
        """Whether a frame (None: damaged) is the next of its client's session.

        An opening frame starts the session, or is answered once more if it is repeated; what does
        not follow on the frames before is answered with `Resync`.
        """
        line = self._lines.get(client)
        if frame is not None and frame.number == 0:
            if line is None or frame.session > line.session:
                self.core.abort(self._live.pop(client, ()), client)
                line = self._lines[client] = Line(frame.session)
                self._greetings.discard(client)
            elif frame.session == line.session and client not in self._greetings:
                self._post(client, line.wrap_as(0, self._encode(self.ready)))
                return False
        if line is None:
            # Whatever it was, its sender still waits for an answer to its hello and repeats that.
            return False
        arrival = "gap" if frame is None else line.arrival(frame)
        if arrival == "gap":
            self._send(client, Resync())
        return arrival == "due"

    def _apply(self, client: int, message: FromClient) -> None:
        if isinstance(message, Add):
            mine = [r for r in message.requests if r.epoch == self.ready.epoch]
            self.status.arrived(array("q", [r.handle for r in mine]))
            self._live.setdefault(client, set()).update(r.handle for r in mine)
            self.core.add(mine)
        elif isinstance(message, Abort):
            self.core.abort(message.handles, client)
        elif isinstance(message, Hello):
            self._greetings.add(client)
        elif isinstance(message, Ping):
            self._send(client, Pong())
        else:
            self._calls.append((client, message))

    def _answer_calls(self) -> None:
        """Do what was asked for, between two steps; it may take longer than a step ever does."""
        if not self._calls:
            return
        self.status.mark_idle()
        calls, self._calls = self._calls, []
        for client, call in calls:
            self._send(client, self._call(call))
        self.status.heartbeat()

    def _call(self, call: Call) -> Reply:
        core = self.core
        try:
            if call.method in CORE_CALLS:
                return Reply(call.id, getattr(core, call.method)(*call.args))
            if call.method in PAUSING_CALLS:
                return Reply(call.id, getattr(core.pausing, call.method)(*call.args))
            return Reply(call.id, core.executor.rpc(call.method, *call.args))
        except InvalidRequest as e:
            return Reply(call.id, error=e.message, refused=True)
        except Exception as e:  # noqa: BLE001 - the caller gets it; the loop lives on
            return Reply(call.id, error=f"{type(e).__name__}: {e}")

    def _control(self) -> None:
        if not select.select([self.channel.fileno()], [], [], 0)[0]:
            return
        try:
            messages = self.channel.receive()
        except EOFError:
            self._orphaned = True
            return
        for message in messages:
            if isinstance(message, ClientGone):
                self.core.abort(self._live.pop(message.client_index, ()), message.client_index)
                self._lines.pop(message.client_index, None)
                self._greetings.discard(message.client_index)
                self.clients.forget(message.client_index)

    # ------------------------------------------------------------------ out

    def _greet(self) -> None:
        """Answer the hellos. By now a step has ended that tells the ends of what their clients had
        asked before, which is of no interest to them any more: `Ready` is the first that they get.
        """
        for client in list(self._greetings):
            self._greetings.discard(client)
            restarts = self.status.take_unreported(max(self.ready.epoch - 1, 0))
            level = self.core.pausing.sleep_level
            now = msgspec.structs.replace(self.ready, restarts=restarts, sleep_level=level)
            self._send(client, now)

    def _emit(self, client: int, outputs: Outputs) -> None:
        if outputs.finished and client in self._live:
            self._live[client].difference_update(f.handle for f in outputs.finished)
        self._send(client, outputs)

    def _send(self, client: int, message: FromEngine) -> None:
        line = self._lines.get(client)
        if line is not None and client not in self._greetings:
            self._post(client, line.wrap(self._encode(message)))

    def _post(self, client: int, frames: list[bytes]) -> None:
        self.clients.send(client, frames)
