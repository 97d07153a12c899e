"""Pause, resume and sleep: stops stepping, holds new requests, and releases memory.

    state      by                    new requests   steps
    RUNNING                          queued         yes
    DRAINING   pause "wait"          held           yes: unfinished requests go on to their end
    PAUSED     pause "keep"          held           no
    PAUSED     pause "abort"         held           no: unfinished requests have been aborted
    PAUSED     sleep                 held           no, and the workers have released memory

Pausing again changes the mode. One `resume`, or a `wake_up` of everything, ends it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING

from galley.errors import InvalidRequest
from galley.request import Request

if TYPE_CHECKING:
    from galley.executor.executor import Executor
    from galley.scheduler import Scheduler

MODES = ("abort", "wait", "keep")
#: The parts that can be woken up separately.
TAGS = ("weights", "kv_cache", "scheduling")


class State(enum.Enum):
    RUNNING = enum.auto()
    DRAINING = enum.auto()
    PAUSED = enum.auto()


class Pausing:
    """The pause of one engine core; called between its steps.

    Args:
        add: queues a request.

    Attributes:
        state: see the module.
        held: requests that have arrived since the pause began.
        sleep_level: level of the sleep, None while awake.
    """

    def __init__(
        self, scheduler: Scheduler, executor: Executor, add: Callable[[Request], None]
    ) -> None:
        self.state = State.RUNNING
        self.held: list[Request] = []
        self.sleep_level: int | None = None
        #: tags that are asleep → whether the workers must restore memory for it
        self._asleep: dict[str, bool] = {}
        self._scheduler = scheduler
        self._executor = executor
        self._add = add

    @property
    def stopped(self) -> bool:
        """No step is taken."""
        return self.state is State.PAUSED

    # ------------------------------------------------------------------ arrivals

    def hold(self, requests: Iterable[Request]) -> bool:
        """Hold new requests during a pause. Returns whether it has taken them."""
        if self.state is State.RUNNING:
            return False
        self.held += requests
        return True

    def release_held(self, handles: Iterable[int], client_index: int) -> None:
        """Queue these of a client's held requests, for the scheduler to abort them."""
        ended = set(handles)
        self._queue_held(lambda r: r.client_index == client_index and r.handle in ended)

    def abort_all(self, request_ids: list[str] | None = None) -> int:
        """Abort every request of every client, or those with these ids; their readers get a last
        output with "abort". Returns the number of sequences.
        """

        def matches(request: Request) -> bool:
            return request_ids is None or belongs(request, request_ids)

        self._queue_held(matches)
        ended = [request for request in self._scheduler.unfinished if matches(request)]
        for request in ended:
            self._scheduler.abort([request.handle], request.client_index)
        return len(ended)

    # ------------------------------------------------------------------ pauses

    def pause(self, mode: str = "abort", clear_cache: bool = True) -> None:
        """Hold arrivals; abort, finish ("wait") or keep unfinished requests.

        Args:
            clear_cache: clear the prefix cache; what is kept will be recomputed. Not in mode
                "wait", whose end only the caller sees: see `drained`.

        Raises:
            InvalidRequest: there is no such mode.
        """
        if mode not in MODES:
            raise InvalidRequest(
                f"mode is one of {', '.join(MODES)}; got {mode:.100}.", field="mode"
            )
        if mode == "abort":
            self.abort_all()
        self.state = State.DRAINING if mode == "wait" else State.PAUSED
        if clear_cache and mode != "wait":
            self._scheduler.reset_prefix_cache(True)

    def drained(self) -> bool:
        """Whether all requests from before the pause have ended."""
        return not (self._scheduler.has_work or self._scheduler.unfinished)

    def is_paused(self) -> bool:
        return self.state is not State.RUNNING

    def resume(self) -> None:
        """Take steps again. Raises InvalidRequest while memory is released."""
        if self._asleep:
            raise InvalidRequest("The engine is asleep: wake it up first.")
        self.state = State.RUNNING
        self.sleep_level = None
        self._queue_held(lambda request: True)

    # ------------------------------------------------------------------ sleep

    def sleep(self, level: int = 1) -> None:
        """Release memory during a pause: at level 1 that of the KV cache, at level 2 also that of
        the weights; level 0 is the pause alone. What was kept is recomputed after waking up.

        Raises:
            InvalidRequest: there is no such level, or requests are still being computed.
        """
        check_level(level)
        self._stop()
        if level:
            self._release(weights=level == 2)
            self._asleep.setdefault("weights", False)
        self.sleep_level = max(level, self.sleep_level or 0)

    def release_kv_cache_memory(self) -> None:
        """Release the memory of the KV cache during a pause; `wake_up` ends it.

        Raises:
            InvalidRequest: requests are being computed, or the engine is asleep already.
        """
        if self._asleep:
            raise InvalidRequest("The engine is asleep: its memory is released already.")
        self._stop()
        self._release(weights=False)
        self.sleep_level = 0

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Take memory again, all of it or that of `tags`. Once all is there the pause ends.

        Returns whether it has ended.

        Raises:
            InvalidRequest: there is no such tag.
        """
        for tag in tags or ():
            if tag not in TAGS:
                raise InvalidRequest(f"tags are {', '.join(TAGS)}; got {tag:.100}.", field="tags")
        for tag in TAGS if tags is None else tags:
            if self._asleep.get(tag):
                self._executor.rpc("restore_memory")
            self._asleep.pop(tag, None)
        if not self._asleep:
            self.resume()
        return not self._asleep

    def is_sleeping(self) -> bool:
        return self.is_paused()

    # ------------------------------------------------------------------

    def _queue_held(self, matches: Callable[[Request], bool]) -> None:
        """Queue held requests."""
        for request in filter(matches, self.held):
            self._add(request)
        self.held = [request for request in self.held if not matches(request)]

    def _stop(self) -> None:
        """Take no step from now on."""
        if self.state is State.RUNNING:
            raise InvalidRequest("Memory can be released only during a pause.")
        if self.state is State.DRAINING and not self.drained():
            raise InvalidRequest("Requests are still being computed.")
        self.state = State.PAUSED

    def _release(self, weights: bool) -> None:
        self._scheduler.reset_prefix_cache(True)
        pool = self._scheduler.kv.pool
        reserved = pool.num_reserved
        pool.set_reserved(pool.num_blocks - 1)  # from now on no block has memory
        pool.set_reserved(reserved)
        self._executor.rpc("release_memory", weights)
        self._asleep["kv_cache"] = False
        if weights:
            self._asleep["weights"] = True


def check_level(level: int) -> None:
    """Raises InvalidRequest if there is no such level of sleep."""
    if level not in (0, 1, 2):
        raise InvalidRequest(f"level is 0, 1 or 2; got {level}.", field="level")


def belongs(request: Request, request_ids: Container[str]) -> bool:
    """Whether a request has one of these ids: its own, that of its n sequences ("2_ID" → ID), or
    that of the answer to several prompts ("ID-3" → ID).
    """
    own = request.request_id
    index, _, parent = own.partition("_")
    whole = parent if index.isdecimal() else own
    answer, _, prompt = whole.rpartition("-")
    return (
        own in request_ids or whole in request_ids or (prompt.isdecimal() and answer in request_ids)
    )
