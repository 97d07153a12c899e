"""Limits on requests in flight: --max-num-queued-reqs and --max-num-queued-tokens.

Counted over all API servers. Each counts its own requests as an observer of its engine client and
reads the counts of the others from shared memory.
"""

from __future__ import annotations

from collections.abc import Callable

from galley.errors import Overloaded
from galley.messages import Outputs, Ready
from galley.request import FinishReason, Request
from galley.server.shared_counts import SharedCounts


class Admission:
    """A `RequestObserver` that decides whether one more request may be admitted.

    Args:
        max_requests: sequences in flight, waiting or running; None: no limit.
        max_tokens: prompt tokens of those whose first token has not come; None: no limit.
        rejected: called with the name of the limit that rejected a request.
        shared: counts of the other API servers.
    """

    def __init__(
        self,
        max_requests: int | None,
        max_tokens: int | None,
        rejected: Callable[[str], None] | None = None,
        shared: SharedCounts | None = None,
    ) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._rejected = rejected or (lambda reason: None)
        self._shared = shared
        self._in_flight: set[int] = set()
        #: handle → prompt tokens, until its first token
        self._prefill: dict[int, int] = {}
        self._num_tokens = 0

    def check(self) -> None:
        """Raise Overloaded if a limit is reached."""
        if self._limit_reached() and self._shared is not None:
            self._shared.forget_dead()
        if (limit := self._limit_reached()) is not None:
            self._rejected(limit[0])
            raise Overloaded(limit[1])

    def _limit_reached(self) -> tuple[str, str] | None:
        """The name of a limit that is reached, and a message."""
        requests, tokens = self._shared.of_others() if self._shared else (0, 0)
        requests += len(self._in_flight)
        tokens += self._num_tokens
        if self._max_requests is not None and requests >= self._max_requests:
            return (
                "max_num_queued_reqs",
                f"{requests} requests are in flight, of {self._max_requests} allowed "
                "(--max-num-queued-reqs). Try again later.",
            )
        if self._max_tokens is not None and tokens >= self._max_tokens:
            return (
                "max_num_queued_tokens",
                f"{tokens} prompt tokens are waiting, of {self._max_tokens} allowed "
                "(--max-num-queued-tokens). Try again later.",
            )
        return None

    def _publish(self) -> None:
        if self._shared is not None:
            self._shared.publish(len(self._in_flight), self._num_tokens)

    # ------------------------------------------------------------------ RequestObserver

    def ready(self, message: Ready) -> None:
        """Nothing to count."""

    def added(self, request: Request, index: int, n: int) -> None:
        self._in_flight.add(request.handle)
        if index == 0:
            # The others of the n share its prompt.
            self._prefill[request.handle] = len(request.prompt_token_ids) // 4
            self._num_tokens += self._prefill[request.handle]
        self._publish()

    def outputs(self, message: Outputs) -> None:
        if self._prefill and message.handles:
            for handle in self._prefill.keys() & set(memoryview(message.handles).cast("q")):
                self._num_tokens -= self._prefill.pop(handle)
            self._publish()

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        self._in_flight.discard(handle)
        self._num_tokens -= self._prefill.pop(handle, 0)
        self._publish()
