"""Starts engine cores and API servers side by side, and restarts those that die.

A loop over three kinds of events: signals, messages from children, deaths. It knows no requests:
when an engine dies, the frontends are informed of that and of its successor, and send it their
unfinished requests.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from galley.engine.control import (
    Bound,
    Channel,
    Control,
    EngineDown,
    EnginesLost,
    EngineUp,
    Failed,
    Serving,
)
from galley.launcher.child import Child, fork
from galley.launcher.watch import Watchdog, memory_kills

Kind = Literal["engine", "server"]
#: Signals that others send. A process that dies in any other way has crashed.
EXTERNAL = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
#: Seconds between SIGTERM and SIGKILL to a child.
GRACE = 5.0
#: Seconds after which a start counts as successful.
SETTLED = 5.0


class Status(Protocol):
    """Status that an engine shares with its launcher (`engine.heartbeat.StatusReader`)."""

    def heartbeat(self) -> int | None: ...
    def num_steps(self) -> int: ...
    def rows(self) -> list[tuple[int, int]]: ...


@dataclass(frozen=True, slots=True)
class Entries:
    """Entry points of the children, and clean-up after them.

    Attributes:
        engine: (channel, index, epoch) → runs an engine core until it ends.
        server: (channel, client index) → runs an API server.
        status: engine index → its status file.
        discard: engine index → clears its persistent memory, which can no longer be trusted.
    """

    engine: Callable[[Channel, int, int], None]
    server: Callable[[Channel, int], None]
    status: Callable[[int], Status]
    discard: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """Restart limits and timeouts. Times in seconds.

    Attributes:
        max_restarts: restarts without progress within `window`, of engines and of API servers.
        step_timeout: a busy engine without progress for so long is killed; 0: never.
        drain: time for requests in flight at the end.
        label: what tells this server's processes from another's in `ps`.
    """

    num_engines: int = 1
    num_servers: int = 1
    max_restarts: int = 5
    window: float = 60.0
    step_timeout: float = 60.0
    drain: float = 0.0
    label: str = ""


class RestartBudget:
    """At most `limit` restarts within `window` seconds, with growing delays while lives are short.

    Progress clears the count: only deaths in a row that achieve nothing use up the budget.
    """

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window
        self._times: deque[float] = deque()
        self._short_lives = 0

    def delay(self, now: float, lifetime: float, progress: bool) -> float | None:
        """Seconds to wait before the restart that is due now; None if there were too many.

        Args:
            lifetime: seconds since the dead process was started.
            progress: it had done some of its work.
        """
        if progress:
            self._times.clear()
            self._short_lives = 0
            return 0.0
        while self._times and now - self._times[0] > self.window:
            self._times.popleft()
        if len(self._times) >= self.limit:
            return None
        self._times.append(now)
        self._short_lives = 0 if lifetime >= SETTLED else self._short_lives + 1
        n = self._short_lives
        return 0.0 if n <= 1 else min(0.1 * 2 ** (n - 2), 2.0)


class Supervisor:
    """Runs the children until a signal ends them all, or they cannot be kept alive.

    Args:
        announce: called once, when start-up of all children has finished.
    """

    def __init__(self, entries: Entries, policy: Policy, announce: Callable[[], None]) -> None:
        self.entries = entries
        self.policy = policy
        self.announce = announce
        self.children: dict[int, Child] = {}
        self.budget: dict[Kind, RestartBudget] = {
            "engine": RestartBudget(policy.max_restarts, policy.window),
            "server": RestartBudget(policy.max_restarts, policy.window),
        }
        self._watchdog = Watchdog(policy.step_timeout)
        self._next_check = time.monotonic() + self._watchdog.interval
        self._memory_kills = memory_kills()
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._next_client = 0
        self._announced = False
        self._exit_code: int | None = None
        self._deadline = float("inf")

    def run(self) -> int:
        """Supervise until shutdown. Returns the exit code: 0 after a signal, else the failure's."""
        wake_reader, wake_writer = socket.socketpair()
        wake_reader.setblocking(False)
        wake_writer.setblocking(False)
        self._selector.register(wake_reader, selectors.EVENT_READ, None)
        previous = [signal.signal(s, lambda *_: None) for s in SIGNALS]
        signal.set_wakeup_fd(wake_writer.fileno())
        try:
            for slot in range(self.policy.num_engines):
                self._start_engine(slot, 1)
            for slot in range(self.policy.num_servers):
                self._start_server(slot)
            while self.children or self._exit_code is None:
                self._run_once(wake_reader)
        finally:
            self._kill_all()
            signal.set_wakeup_fd(-1)
            for s, handler in zip(SIGNALS, previous, strict=True):
                signal.signal(s, handler)
            self._selector.close()
            wake_reader.close()
            wake_writer.close()
        assert self._exit_code is not None
        return self._exit_code

    def _run_once(self, wake_reader: socket.socket) -> None:
        now = time.monotonic()
        until = min([self._deadline, self._next_check, *(at for at, _ in self._due)])
        timeout = None if until == float("inf") else max(until - now, 0.0)
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._on_signals(wake_reader.recv(64))
            else:
                self._listen(key.data)
        self._reap()
        now = time.monotonic()
        due = [act for at, act in self._due if at <= now]
        self._due = [(at, act) for at, act in self._due if at > now]
        for act in due:
            act()
        if now >= self._next_check:
            self._next_check = now + self._watchdog.interval
            self._kill_hanging(now)
        if now >= self._deadline:
            self._deadline = float("inf")
            self._kill_all()

    # ------------------------------------------------------------------ starting

    def _start(self, kind: Kind, slot: int, number: int, entry: Callable[[Channel], None]) -> Child:
        title = ("Galley::EngineCore_" if kind == "engine" else "Galley::APIServer_") + str(slot)
        title += self.policy.label
        # An engine has nothing to clean up. An API server notices the end of its channel, cleans
        # up and exits; the signal is for one that has not started to read it.
        parent_death = signal.SIGKILL if kind == "engine" else signal.SIGTERM
        inherited = [c.channel for c in self.children.values()]
        pid, channel = fork(title, entry, inherited, parent_death)
        child = Child(kind, slot, number, pid, channel)
        self.children[pid] = child
        self._selector.register(channel, selectors.EVENT_READ, child)
        return child

    def _start_engine(self, slot: int, epoch: int) -> None:
        if self._exit_code is None:
            self._start(
                "engine", slot, epoch, lambda channel: self.entries.engine(channel, slot, epoch)
            )

    def _start_server(self, slot: int) -> None:
        if self._exit_code is not None:
            return
        number = self._next_client
        self._next_client += 1
        child = self._start(
            "server", slot, number, lambda channel: self.entries.server(channel, number)
        )
        for engine in self._of_kind("engine"):
            if engine.address is not None:
                child.channel.send(EngineUp(engine.slot, engine.number, engine.address))

    def _of_kind(self, kind: Kind) -> list[Child]:
        return [c for c in self.children.values() if c.kind == kind]

    def _send_all(self, kind: Kind, message: Control) -> None:
        for child in self._of_kind(kind):
            child.channel.send(message)

    # ------------------------------------------------------------------ messages from children

    def _listen(self, child: Child) -> None:
        try:
            messages = child.channel.receive()
        except EOFError:
            self._selector.unregister(child.channel)
            return
        for message in messages:
            if isinstance(message, Bound):
                child.address = message.address
                self._send_all("server", EngineUp(child.slot, child.number, message.address))
            elif isinstance(message, Serving):
                child.serving = True
                self._announce_once()
            elif isinstance(message, Failed):
                self._failed(message)

    def _announce_once(self) -> None:
        if not self._announced and all(c.serving for c in self.children.values()):
            self._announced = True
            self.announce()

    def _failed(self, message: Failed) -> None:
        """Report a failure; before start-up has finished it ends the server."""
        if self._exit_code is None:
            fail(message.message)
            if not self._announced:
                self._stop(message.code)

    # ------------------------------------------------------------------ deaths

    def _reap(self) -> None:
        for pid, child in list(self.children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            # Its last messages may still be in the channel.
            if child.channel in self._selector.get_map():
                self._drain_channel(child)
            child.channel.close()
            del self.children[pid]
            self._on_death(child, status)

    def _drain_channel(self, child: Child) -> None:
        while child.channel in self._selector.get_map():
            self._listen(child)

    def _kill_hanging(self, now: float) -> None:
        for child in self._of_kind("engine"):
            if not child.serving or child.failing:
                continue
            if self._watchdog.hangs(child.pid, self.entries.status(child.slot).heartbeat(), now):
                child.failing = f"made no progress for {self.policy.step_timeout:g} s"
                child.signal(signal.SIGKILL)

    def _cause(self, child: Child, status: int) -> tuple[str, bool]:
        """The cause of a death in words, and whether the child has crashed."""
        before, self._memory_kills = self._memory_kills, memory_kills()
        if child.failing:
            return child.failing, True
        if not os.WIFSIGNALED(status):
            return f"ended with code {os.waitstatus_to_exitcode(status)}", True
        number = signal.Signals(os.WTERMSIG(status))
        if number == signal.SIGKILL and self._memory_kills > before:
            return "was ended by SIGKILL, as the machine's memory ran out", True
        return f"was ended by {number.name}", number not in EXTERNAL

    def _on_death(self, child: Child, status: int) -> None:
        if self._exit_code is not None:
            if not self._of_kind("server"):
                self._end_engines()
            return
        cause, crashed = self._cause(child, status)
        progress = False
        if child.kind == "engine":
            progress = self._bury_engine(child, crashed)
        now = time.monotonic()
        delay = self.budget[child.kind].delay(now, now - child.started, progress)
        name = f"{'engine core' if child.kind == 'engine' else 'API server'} {child.slot}"
        if delay is None:
            policy = self.policy
            sentence = (
                f"{name} {cause}: {policy.max_restarts} restarts within {policy.window:.0f} s did "
                "not help, giving up."
            )
            say(sentence, "ERROR")
            self._send_all("server", EnginesLost(sentence))
            self._stop(1)
            return
        after = f" in {delay:.1f} s" if delay else ""
        say(f"{name} {cause}: restarting it{after}", "WARNING")
        slot, epoch = child.slot, child.number + 1
        if child.kind == "engine":
            self._due.append((now + delay, lambda: self._start_engine(slot, epoch)))
        else:
            self._due.append((now + delay, lambda: self._start_server(slot)))

    def _bury_engine(self, child: Child, crashed: bool) -> bool:
        """Report an engine's death to the API servers. Returns whether it had made progress: it
        had committed a step, or it was killed while there was nothing to do.
        """
        self._watchdog.forget(child.pid)
        status = self.entries.status(child.slot)
        # Before the end of its start-up the file is that of its predecessor.
        rows = status.rows() if crashed and child.serving else []
        if crashed:
            self.entries.discard(child.slot)
        self._send_all("server", EngineDown(child.slot, child.number, crashed, rows))
        idle = not crashed and status.heartbeat() is None
        return child.serving and (idle or status.num_steps() > 0)

    # ------------------------------------------------------------------ shutdown

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCHLD:
                continue
            if self._exit_code is None:
                self._stop(0)
            else:
                self._kill_all()

    def _stop(self, code: int) -> None:
        """End all children: first the API servers, then the engines."""
        self._exit_code = code
        self._due.clear()
        if self._of_kind("server"):
            if self.policy.drain and self._announced:
                say(
                    f"shutting down: requests in flight have {self.policy.drain:g} s; Ctrl-C again "
                    "ends now"
                )
            self._deadline = time.monotonic() + self.policy.drain + GRACE
            for child in self._of_kind("server"):
                child.signal(signal.SIGTERM)
        else:
            self._end_engines()

    def _end_engines(self) -> None:
        self._deadline = time.monotonic() + GRACE
        for child in self._of_kind("engine"):
            child.signal(signal.SIGTERM)

    def _kill_all(self) -> None:
        for child in self.children.values():
            child.signal(signal.SIGKILL)


def say(sentence: str, level: str = "INFO", always: bool = False) -> None:
    """Write a line of the log to the terminal; `always`: at any --log-level."""
    import logging

    from galley.observability.logging import level_of, make_formatter

    if not always and logging.getLevelNamesMapping()[level] < level_of(os.environ):
        return
    fields = {"name": "galley.launcher", "levelname": level, "msg": sentence}
    formatter = make_formatter(os.environ, sys.stderr)
    _write(formatter.format(logging.makeLogRecord(fields)))


def fail(sentence: str) -> None:
    """Say why nothing is served: as a command does, or as a line of a JSON log."""
    if os.environ.get("GALLEY_LOGGING_FORMAT") == "json":
        say(sentence, "ERROR", always=True)
    else:
        _write(f"galley: {sentence}")


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")  # at once: print would let other processes write in between
    sys.stderr.flush()
