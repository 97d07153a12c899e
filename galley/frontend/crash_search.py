"""Finds the request that crashes its engine, by handle and length alone.

After a crash the requests that the engine was working on are suspects. They are sent to the next
engine one at a time: each is the candidate until it is longer than it was when the engine crashed
(which may be longer than its client has seen). If that engine crashes as well, the candidate is the
culprit: no other request was in both crashes without having been cleared.
"""

from __future__ import annotations


class CrashSearch:
    """Suspects of one engine, in the order in which they are sent.

    Attributes:
        candidate: the suspect that has been sent and not been cleared yet.
    """

    def __init__(self) -> None:
        self.candidate: int | None = None
        self._length_to_pass = 0
        self._held: dict[int, int] = {}

    @property
    def active(self) -> bool:
        return self.candidate is not None or bool(self._held)

    def holds(self, handle: int) -> bool:
        """Whether a request is a suspect that must not be sent yet."""
        return handle in self._held

    def crashed(self, rows: dict[int, int]) -> int | None:
        """The engine crashed while working on `rows`: handle → tokens of that request (prompt and
        output; 0 = not known). Returns the culprit, if known.
        """
        culprit = self.candidate if self.candidate in rows else None
        new = {h: n for h, n in rows.items() if h != culprit and h not in self._held}
        self._held = {**new, **self._held}
        self.candidate = None
        return culprit

    def killed(self) -> None:
        """The engine was killed externally: the candidate is sent again, and none is suspected."""
        if self.candidate is not None:
            self._held = {self.candidate: self._length_to_pass, **self._held}
            self.candidate = None

    def next_candidate(self, live: dict[int, int]) -> int | None:
        """Given the unfinished handles with their lengths, the next suspect to send, if any.

        Clears the present candidate if it is long enough or has ended.
        """
        current = self.candidate
        if current is not None:
            if current in live and live[current] <= self._length_to_pass:
                return None
            self.candidate = None
        while self._held:
            handle = next(iter(self._held))
            length = self._held.pop(handle)
            if handle in live:
                self.candidate, self._length_to_pass = handle, max(length, live[handle])
                return handle
        return None
