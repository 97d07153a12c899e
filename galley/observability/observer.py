"""What the frontend tells of its requests, as plain events: the seam that metrics hang on.

An engine client calls an observer at four moments; it knows nothing of metrics, and an observer
knows nothing of sockets or HTTP. Messages are described by their shape, since their types
(`galley.messages`) belong to a room above this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from galley.request import FinishReason, Request


class StartedShape(Protocol):
    """`galley.messages.Started`: a request was admitted to a slot. Times are `time.time`."""

    handle: int
    num_cached_tokens: int
    queued_time: float
    scheduled_time: float
    resumed: bool


class StatsShape(Protocol):
    """`galley.messages.Stats`: the scheduler's state, and counters since the engine's start."""

    num_running: int
    num_waiting: int
    waiting_by_reason: dict[str, int]
    kv_cache_usage: float
    num_preemptions: int
    prefix_queries: int
    prefix_hits: int
    step_tokens: int
    num_steps: int
    flops: float
    read_bytes: float
    write_bytes: float
    block_times: list[bytes]
    model_seconds: float
    memory_short: bool
    reserved_blocks: int


class OutputsShape(Protocol):
    """`galley.messages.Outputs`: what one step yielded for this client."""

    epoch: int
    engine_index: int
    timestamp: float
    handles: bytes
    counts: bytes

    @property
    def started(self) -> Sequence[StartedShape]: ...
    @property
    def stats(self) -> StatsShape | None: ...


class ReadyShape(Protocol):
    """`galley.messages.Ready`: an engine accepts requests."""

    engine_index: int
    epoch: int
    max_model_len: int
    num_blocks: int
    block_size: int
    batch_invariant: bool
    sleep_level: int | None
    info: dict[str, Any]


class RequestObserver(Protocol):
    """Events of one engine client, in order. Calls are cheap and never raise."""

    def ready(self, message: ReadyShape) -> None:
        """An engine came up (again, after a restart)."""

    def added(self, request: Request, index: int, n: int) -> None:
        """A sequence was accepted for the first time: child `index` of a request for `n`.

        Not called again when the request is sent to another engine (replay).
        """

    def outputs(self, message: OutputsShape) -> None:
        """A step's outputs arrived; called before they are handed to their requests.

        Outputs of a dead engine's epoch are not reported.
        """

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        """The one end of a sequence, whoever ended it; `num_tokens` were delivered in all."""


class Observers:
    """Several observers as one."""

    def __init__(self, *observers: RequestObserver) -> None:
        self._observers = observers

    def ready(self, message: ReadyShape) -> None:
        for observer in self._observers:
            observer.ready(message)

    def added(self, request: Request, index: int, n: int) -> None:
        for observer in self._observers:
            observer.added(request, index, n)

    def outputs(self, message: OutputsShape) -> None:
        for observer in self._observers:
            observer.outputs(message)

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        for observer in self._observers:
            observer.finished(handle, reason, num_tokens)


#: Steps told at a time.
BATCH = 32


class BatchingObserver:
    """Tells an observer of steps that are like the one before, a token each for the same requests,
    in bunches: all that it looks at is then in the caches, and at one stream that is a quarter of
    what a token costs. Order is kept: anything else is told at once, and what was held back before
    it. Whoever reads what the observer has counted calls `catch_up` first.
    """

    def __init__(self, observer: RequestObserver) -> None:
        self._observer = observer
        self._held: list[OutputsShape] = []
        self._handles = b""

    def catch_up(self) -> None:
        """Tell what has been held back."""
        held, self._held = self._held, []
        for message in held:
            self._observer.outputs(message)

    def ready(self, message: ReadyShape) -> None:
        self.catch_up()
        self._observer.ready(message)

    def added(self, request: Request, index: int, n: int) -> None:
        self.catch_up()
        self._observer.added(request, index, n)

    def outputs(self, message: OutputsShape) -> None:
        same = message.handles == self._handles and not message.counts and not message.started
        self._held.append(message)
        if not same or not self._handles or len(self._held) >= BATCH:
            self._handles = message.handles
            self.catch_up()

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        self.catch_up()
        self._observer.finished(handle, reason, num_tokens)
