"""Finds the request that crashes its engine, by handle and length alone.

After a crash the requests that the engine was working on are suspects. They are sent to the next
engine one at a time, each on trial until it is longer than it was when the engine crashed (which
may be longer than its client has seen). If that engine crashes as well, the request on trial is
guilty: it alone was in both crashes without having been cleared.
"""

from __future__ import annotations


class Probation:
    """Suspects of one engine, in the order of their trials.

    Attributes:
        on_trial: the suspect that has been sent and not been cleared yet.
    """

    def __init__(self) -> None:
        self.on_trial: int | None = None
        self._length_to_pass = 0
        self._held: dict[int, int] = {}

    @property
    def active(self) -> bool:
        return self.on_trial is not None or bool(self._held)

    def holds(self, handle: int) -> bool:
        """Whether a request is a suspect that must wait for its trial."""
        return handle in self._held

    def crashed(self, rows: dict[int, int]) -> int | None:
        """The engine crashed while working on `rows`: handle → tokens of that request (prompt and
        output; 0 = not known). Returns the guilty one, if known.
        """
        guilty = self.on_trial if self.on_trial in rows else None
        new = {h: n for h, n in rows.items() if h != guilty and h not in self._held}
        self._held = {**new, **self._held}
        self.on_trial = None
        return guilty

    def killed(self) -> None:
        """The engine was killed externally; restart the trial, suspect no request."""
        if self.on_trial is not None:
            self._held = {self.on_trial: self._length_to_pass, **self._held}
            self.on_trial = None

    def next_trial(self, live: dict[int, int]) -> int | None:
        """Given the unfinished handles with their lengths, the next suspect to send, if any.

        Ends the present trial if its request is long enough or has ended.
        """
        current = self.on_trial
        if current is not None:
            if current in live and live[current] <= self._length_to_pass:
                return None
            self.on_trial = None
        while self._held:
            handle = next(iter(self._held))
            length = self._held.pop(handle)
            if handle in live:
                self.on_trial, self._length_to_pass = handle, max(length, live[handle])
                return handle
        return None
