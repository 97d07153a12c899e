"""The engine core as a process: sockets in, steps, sockets out.

One thread does everything. Between steps, and once while the device computes, it handles what
clients have sent; with nothing to compute it sleeps in poll. The outputs of a step go out as one
message per client. A client's session is its connection: when that ends, its requests are aborted,
and a client that connects again sends them again.
"""

from __future__ import annotations

import logging
import select
from array import array
from typing import TYPE_CHECKING

import msgspec

from galley.engine.control import Channel
from galley.engine.frames import Change, FrameServer
from galley.engine.heartbeat import StatusFile
from galley.engine.observers import RowRecorder
from galley.engine.wake_up import WakeUp
from galley.errors import InvalidRequest
from galley.messages import Abort, Add, Call, FromClient, FromEngine, Outputs, Ready, Reply

if TYPE_CHECKING:
    from galley.engine.core import Core

log = logging.getLogger(__name__)

#: The methods that a client may call by name: those of the core, and of its pausing. Any other name
#: goes to the executor's workers.
CORE_CALLS = (
    *("reset_prefix_cache", "check_integrity", "start_profile", "stop_profile"),
    *("live_view", "profile_operations", "has_timed_operations", "operation_times"),
)
# fmt: off
PAUSING_CALLS = (
    "pause", "resume", "is_paused", "drained", "abort_all",
    "sleep", "wake_up", "is_sleeping", "release_kv_cache_memory",
)
# fmt: on
#: Seconds between two runs of the idle tasks.
IDLE = 1.0
#: Steps between two checks for the launcher's end while there is work.
CHECK_EVERY = 16


class EngineProcess:
    """Runs a core for its clients.

    Args:
        clients: their connections.
        ready: sent to each client when its session begins.
        status: the shared file that the launcher reads.
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
        #: client → handles of its unfinished requests
        self._sessions: dict[int, set[int]] = {}
        #: clients that have not been sent `Ready`
        self._new: set[int] = set()
        self._calls: list[tuple[int, Call]] = []
        self._orphaned = False
        self._wake = WakeUp()
        core.on_compiled(self._wake.set)
        core.observers.append(RowRecorder(status))
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
                self._check_launcher()
            status.heartbeat()
            self.receive()
            self._answer_calls()
            if core.has_work or self._new:
                for client, outputs in core.step():
                    self._emit(client, outputs)
                self._send_ready()
                steps += 1
                if steps % CHECK_EVERY == 0:
                    self._check_launcher()

    def _idle(self) -> None:
        """Sleep until there is something to do, and run the idle tasks meanwhile. A violated
        invariant ends the process: a fresh engine has none.
        """
        while not self.clients.wait((self.channel.fileno(), self._wake.fileno()), IDLE):
            for client, outputs in self.core.idle_tasks.run(list(self._sessions)):
                self._send(client, outputs)
        self._wake.clear()

    # ------------------------------------------------------------------ in

    def receive(self) -> None:
        """Handle everything that clients have sent so far."""
        for client, event in self.clients.receive():
            if event is Change.OPENED:
                self._sessions[client] = set()
                self._new.add(client)
            elif event is Change.CLOSED:
                self._end_session(client)
            elif client in self._sessions:
                self._on_frame(client, event)

    def _end_session(self, client: int) -> None:
        """Abort what the client has requested: it will send it again if it still wants it."""
        self._new.discard(client)
        self.core.abort(self._sessions.pop(client, ()), client)

    def _on_frame(self, client: int, payload: bytes) -> None:
        try:
            message = self._decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            log.warning("client %d has sent a malformed message; disconnecting it: %s", client, e)
            self.clients.disconnect(client)
            self._end_session(client)
            return
        if isinstance(message, Add):
            requests = [r for r in message.requests if r.epoch == self.ready.epoch]
            handles = [r.handle for r in requests]
            self.status.arrived(array("q", handles))
            self._sessions[client].update(handles)
            self.core.add(requests)
        elif isinstance(message, Abort):
            self.core.abort(message.handles, client)
        else:
            self._calls.append((client, message))

    def _answer_calls(self) -> None:
        """Run calls, between two steps. One may take longer than any step: the engine counts as
        idle meanwhile.
        """
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
        except Exception as e:  # noqa: BLE001 - the caller gets the error, the engine goes on
            return Reply(call.id, error=f"{type(e).__name__}: {e}")

    def _check_launcher(self) -> None:
        """Notice the launcher's end: the channel to it has nothing else to read."""
        if select.select([self.channel.fileno()], [], [], 0)[0]:
            try:
                self.channel.receive()
            except EOFError:
                self._orphaned = True

    # ------------------------------------------------------------------ out

    def _send_ready(self) -> None:
        """Answer new sessions. A step has ended since they were opened, so the ends of what the
        client's previous session had requested are out: `Ready` is the first message that it gets.
        """
        new, self._new = self._new, set()
        for client in new:
            level = self.core.pausing.sleep_level
            self._send(client, msgspec.structs.replace(self.ready, sleep_level=level))

    def _emit(self, client: int, outputs: Outputs) -> None:
        if outputs.finished and client in self._sessions:
            self._sessions[client].difference_update(f.handle for f in outputs.finished)
        self._send(client, outputs)

    def _send(self, client: int, message: FromEngine) -> None:
        """Send to a client, unless its session is new or has ended."""
        if client in self._sessions and client not in self._new:
            self._post(client, self._encode(message))

    def _post(self, client: int, payload: bytes) -> None:
        self.clients.send(client, payload)
