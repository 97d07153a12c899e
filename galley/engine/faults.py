"""Fault injection, for tests: an engine that dies, hangs or disconnects at a chosen moment.

    GALLEY_FAULTS="1:step12=kill, 2:start=memory, 3:out7=close, *:step5+=sleep/0.2"

    EPOCH:MOMENT=ACT[/SECONDS]
      EPOCH   the incarnation, or * for all
      MOMENT  start     before the model is loaded       stepN   before step N is computed
              loaded    after it, before requests        afterN  after it, before its outputs go out
              outN      when it sends frame N       (N+ = from N on; all count from 1)
      ACT     kill segv abort          it sends itself the signal
              raise memory             an exception in Python
              hang sleep               it blocks, forever or for SECONDS
              starve                   it can allocate no more memory
              leak                     a KV block is leaked                     (stepN, afterN)
              short                    for SECONDS the machine seems out of memory      (same)
              close                    the frame's connection is closed         (outN)

Only this variable activates anything here, and it is refused without GALLEY_DEV_MODE=1 (or
VLLM_SERVER_DEV_MODE=1).
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from galley.config.memory import Memory, MemorySource
from galley.engine.observers import StepObserver
from galley.errors import ConfigError

if TYPE_CHECKING:
    from galley.batch import RequestTable, StepPlan
    from galley.engine.process import EngineProcess

VARIABLE = "GALLEY_FAULTS"
_SPEC = re.compile(r"(\d+|\*):(start|loaded|step|after|out)(\d*)(\+?)=([a-z]+)(?:/([\d.]+))?")
_SIGNALS = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "abort": signal.SIGABRT}
_OF_PROCESS = {*_SIGNALS, "raise", "memory", "hang", "sleep", "starve"}
_OF_CORE = {"leak", "short"}
_OF_MOMENT = {"out": {"close"}, "step": _OF_CORE, "after": _OF_CORE}


class Fault(msgspec.Struct, frozen=True):
    """One fault. `epoch` None = every incarnation; it acts on counts `first` … `last`."""

    text: str
    epoch: int | None
    moment: str
    first: int
    last: float
    act: str
    seconds: float


def read_faults(env: Mapping[str, str] = os.environ) -> list[Fault]:
    """The faults in GALLEY_FAULTS.

    Raises:
        ConfigError: it is set without development mode, or cannot be parsed.
    """
    text = env.get(VARIABLE, "")
    if not text:
        return []
    if "1" not in (env.get("GALLEY_DEV_MODE"), env.get("VLLM_SERVER_DEV_MODE")):
        raise ConfigError(
            f"{VARIABLE} makes the engine fail on purpose; it acts only with GALLEY_DEV_MODE=1."
        )
    return [_read(item.strip()) for item in text.split(",")]


def _read(item: str) -> Fault:
    match = _SPEC.fullmatch(item)
    if match is None:
        raise ConfigError(f"{VARIABLE}: {item!r} is not EPOCH:MOMENT=ACT[/SECONDS].")
    epoch, moment, count, on, act, seconds = match.groups()
    if act not in _OF_PROCESS | _OF_MOMENT.get(moment, set()):
        raise ConfigError(f"{VARIABLE}: there is no {act!r} at {moment}.")
    counted = moment not in ("start", "loaded")
    if counted != bool(count):
        raise ConfigError(f"{VARIABLE}: {moment} {'needs a' if counted else 'has no'} number.")
    first = int(count or 1)
    return Fault(
        item,
        None if epoch == "*" else int(epoch),
        moment,
        first,
        float("inf") if on else first,
        act,
        float(seconds or 0.2),
    )


class Faults:
    """The faults of one incarnation; counts how often each moment was reached."""

    def __init__(self, faults: list[Fault], epoch: int) -> None:
        self._faults = [f for f in faults if f.epoch in (None, epoch)]
        self._counts: dict[str, int] = {}

    def reached(self, moment: str) -> list[Fault]:
        """Count a moment, and inject its faults in the process. Returns those that concern the core
        or a connection, for the caller to apply.
        """
        n = self._counts[moment] = self._counts.get(moment, 0) + 1
        due = [f for f in self._faults if f.moment == moment and f.first <= n <= f.last]
        for fault in due:
            if n == fault.first:
                print(f"galley: injected fault: {fault.text}", file=sys.stderr, flush=True)
            if fault.act in _OF_PROCESS:
                act(fault)
        return [f for f in due if f.act not in _OF_PROCESS]


def act(fault: Fault) -> None:
    """Inject a fault in this process."""
    if fault.act in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.act])
        time.sleep(10)  # until the signal is delivered
    elif fault.act == "raise":
        raise RuntimeError(f"{VARIABLE}: an exception at {fault.moment}")
    elif fault.act == "memory":
        raise MemoryError(f"{VARIABLE}: no memory at {fault.moment}")
    elif fault.act == "hang":
        hang()
    elif fault.act == "sleep":
        time.sleep(fault.seconds)
    else:
        with open("/proc/self/statm", encoding="ascii") as f:
            now = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now, now))


def hang() -> NoReturn:
    while True:
        time.sleep(3600)


def faulty_loader(load: Callable[..., Any], faults: Faults) -> Callable[..., Any]:
    """Wraps `load` with the faults of start-up."""

    def loader(*args: Any) -> Any:
        faults.reached("start")
        loaded = load(*args)
        faults.reached("loaded")
        return loaded

    return loader


def faulty_process(faults: Faults) -> type[EngineProcess]:
    """An `EngineProcess` with fault injection."""
    from galley.engine.process import EngineProcess

    class FaultyProcess(EngineProcess):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.core.observers.append(FaultObserver(self.core, faults))

        def _post(self, client: int, payload: bytes) -> None:
            if faults.reached("out"):
                self.clients.disconnect(client)
            super()._post(client, payload)

    return FaultyProcess


class FaultObserver(StepObserver):
    """Injects the faults of steps."""

    def __init__(self, core: Any, faults: Faults) -> None:
        self._core = core
        self._faults = faults

    def planned(self, plan: StepPlan, table: RequestTable) -> None:
        self._apply(self._faults.reached("step"))

    def committed(self) -> None:
        self._apply(self._faults.reached("after"))

    def _apply(self, due: list[Fault]) -> None:
        for fault in due:
            if fault.act == "leak":
                self._core.scheduler.kv.pool.allocate(1)
            else:
                guard = self._core.guard
                guard.source = NoMemory(guard.source, fault.seconds)


class NoMemory:
    """A `MemorySource` that reports no memory for some seconds, and then what another reports."""

    def __init__(self, then: MemorySource, seconds: float) -> None:
        self._then = then
        self._until = time.monotonic() + seconds

    def read(self) -> Memory:
        memory = self._then.read()
        return memory if time.monotonic() > self._until else Memory(memory.total, 0)
