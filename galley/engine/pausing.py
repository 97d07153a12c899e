"""Standing still: whether steps are taken, who waits until they are again, and the memory that is
given back meanwhile.

                      new requests   steps
    running           queued         yes
    pause "wait"      held           yes: what was there before goes on to its end
    pause "keep"      held           no
    pause "abort"     held           no: what was there before has ended
    sleep             held           no, and the workers have given memory back

Pausing again changes the mode; one resume, or waking up entirely, ends it all.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING

from galley.errors import InvalidRequest
from galley.request import Request

if TYPE_CHECKING:
    from galley.executor.executor import Executor
    from galley.scheduler import Scheduler

MODES = ("abort", "wait", "keep")
#: What can be woken up one by one.
TAGS = ("weights", "kv_cache", "scheduling")


class Pausing:
    """The pause of one engine core; called between its steps.

    Attributes:
        stopped: no step is taken.
        held: requests that have come in since the pause began.
        sleep_level: of the sleep, None while there is none.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self.stopped = False
        self.held: list[Request] = []
        self._closed = False
        self.sleep_level: int | None = None
        self._asleep: set[str] = set()
        self._dropped = False
        self._scheduler = scheduler
        self._executor = executor

    # ------------------------------------------------------------------ arrivals

    def hold(self, requests: Iterable[Request]) -> bool:
        """Keep new requests back, if there is a pause."""
        if self._closed:
            self.held += requests
        return self._closed

    def give_up(self, handles: Iterable[int], client_index: int) -> None:
        """Hand those of a client's held requests to the scheduler, which is about to end them."""
        ended = set(handles)
        self._unhold(lambda r: r.client_index == client_index and r.handle in ended)

    def abort_all(self, request_ids: list[str] | None = None) -> None:
        """End every request of every client, or those of these ids; their readers get a last output
        with "abort".
        """

        def is_meant(request: Request) -> bool:
            return request_ids is None or belongs(request, request_ids)

        self._unhold(is_meant)
        for request in filter(is_meant, self._scheduler.unfinished):
            self._scheduler.abort([request.handle], request.client_index)

    # ------------------------------------------------------------------ pauses

    def pause(self, mode: str = "abort", clear_cache: bool = True) -> None:
        """Hold what comes in; end ("abort"), finish ("wait") or keep what is there.

        Args:
            clear_cache: forget cached prefixes; what is kept is computed anew. Not in mode "wait",
                whose end only the caller sees: see `drained`.

        Raises:
            InvalidRequest: there is no such mode.
        """
        if mode not in MODES:
            raise InvalidRequest(
                f"mode is one of {', '.join(MODES)}; got {mode:.100}.", field="mode"
            )
        if mode == "abort":
            self.abort_all()
        self._closed, self.stopped = True, mode != "wait"
        if clear_cache and mode != "wait":
            self._scheduler.reset_prefix_cache(True)

    def drained(self) -> bool:
        """Nothing that came before the pause is left to be computed."""
        return not self._scheduler.has_work

    def is_paused(self) -> bool:
        return self._closed

    def resume(self) -> None:
        """Take steps again. Raises InvalidRequest while memory is given back."""
        if self._asleep:
            raise InvalidRequest("The engine is asleep: wake it up first.")
        self._closed = self.stopped = False
        self.sleep_level = None
        self._unhold(lambda request: True)

    # ------------------------------------------------------------------ sleep

    def sleep(self, level: int = 1) -> None:
        """Give memory back during a pause: at level 1 that of the KV cache, at level 2 that of the
        weights too; level 0 is the pause alone. What was kept is computed anew after waking up.

        Raises:
            InvalidRequest: there is no such level, or requests are still being computed.
        """
        check_level(level)
        self._stand_still()
        if level:
            self._release(("weights", "kv_cache"), weights=level == 2)
        self.sleep_level = max(level, self.sleep_level or 0)

    def release_kv_cache_memory(self) -> None:
        """Give the memory of the KV cache back during a pause; `wake_up` ends it.

        Raises:
            InvalidRequest: requests are being computed, or the engine is asleep already.
        """
        if self._asleep:
            raise InvalidRequest("The engine is asleep: its memory is given back already.")
        self._stand_still()
        self._release(("kv_cache",), weights=False)
        self.sleep_level = 0

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Take memory again, all of it or what `tags` name. Once it is all there the pause ends.

        Returns whether it has.

        Raises:
            InvalidRequest: there is no such tag.
        """
        for tag in tags or ():
            if tag not in TAGS:
                raise InvalidRequest(f"tags are {', '.join(TAGS)}; got {tag:.100}.", field="tags")
        woken = set(TAGS if tags is None else tags)
        if self._dropped and "weights" in woken:
            self._executor.rpc("restore_memory")
            self._dropped = False
        self._asleep -= woken
        if not self._asleep:
            self.resume()
        return not self._asleep

    def is_sleeping(self) -> bool:
        return self._closed

    # ------------------------------------------------------------------

    def _unhold(self, is_meant: Callable[[Request], bool]) -> None:
        """Queue held requests."""
        for request in filter(is_meant, self.held):
            self._scheduler.add(request)
        self.held = [request for request in self.held if not is_meant(request)]

    def _stand_still(self) -> None:
        """No step from now on."""
        if not self._closed:
            raise InvalidRequest("Memory can be given back during a pause alone.")
        if not self.stopped and not self.drained():
            raise InvalidRequest("Requests are still being computed.")
        self.stopped = True

    def _release(self, tags: tuple[str, ...], weights: bool) -> None:
        self._scheduler.reset_prefix_cache(True)
        pool = self._scheduler.kv.pool
        reserved = pool.num_reserved
        pool.set_reserved(pool.num_blocks - 1)  # from now on no block has memory
        pool.set_reserved(reserved)
        self._executor.rpc("release_memory", weights)
        self._asleep |= set(tags)
        self._dropped |= weights


def check_level(level: int) -> None:
    """Raises InvalidRequest where there is no such level of sleep."""
    if level not in (0, 1, 2):
        raise InvalidRequest(f"level is 0, 1 or 2; got {level}.", field="level")


def belongs(request: Request, request_ids: Container[str]) -> bool:
    """Whether a request has one of these ids: its own, that of all its n sequences ("2_ID" → ID),
    or that of the answer to several prompts ("ID-3" → ID).
    """
    own = request.request_id
    index, _, parent = own.partition("_")
    whole = parent if index.isdecimal() else own
    answer, _, prompt = whole.rpartition("-")
    return (
        own in request_ids or whole in request_ids or (prompt.isdecimal() and answer in request_ids)
    )
