"""Finding the request that kills its engine, by handle and length alone.

After a crash the requests that the engine was occupied with are suspects. They go to the next
engine one at a time, each on trial until it has got further than it had when the engine crashed
(which may be further than its client has heard of); should that engine crash too, the one on trial
was in both crashes and the others were not both times unproven: it is guilty.
"""

from __future__ import annotations


class Probation:
    """Suspects of one engine, in the order in which they get their trial.

    Attributes:
        on_trial: the suspect that has been sent and has not proven itself since.
    """

    def __init__(self) -> None:
        self.on_trial: int | None = None
        self._bar = 0
        self._held: dict[int, int] = {}

    @property
    def active(self) -> bool:
        return self.on_trial is not None or bool(self._held)

    def holds(self, handle: int) -> bool:
        """A suspect that must wait for its trial."""
        return handle in self._held

    def crashed(self, rows: dict[int, int]) -> int | None:
        """The engine died by itself, occupied with `rows`: handle → tokens that it had (prompt and
        output; 0 = not known). Returns the guilty one, if known.
        """
        guilty = self.on_trial if self.on_trial in rows else None
        fresh = {h: n for h, n in rows.items() if h != guilty and h not in self._held}
        self._held = {**fresh, **self._held}
        self.on_trial = None
        return guilty

    def killed(self) -> None:
        """The engine died by someone else's hand: the trial starts over, nobody is suspected."""
        if self.on_trial is not None:
            self._held = {self.on_trial: self._bar, **self._held}
            self.on_trial = None

    def next_trial(self, live: dict[int, int]) -> int | None:
        """Given the live handles with their lengths, the next suspect to send, if it is time.

        Ends the present trial if its request has got far enough or is gone.
        """
        current = self.on_trial
        if current is not None:
            if current in live and live[current] <= self._bar:
                return None
            self.on_trial = None
        while self._held:
            handle = next(iter(self._held))
            length = self._held.pop(handle)
            if handle in live:
                self.on_trial, self._bar = handle, max(length, live[handle])
                return handle
        return None
