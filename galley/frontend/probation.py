"""Finding the request that kills its engine, by handle alone.

After a crash the requests of the engine's last step are suspects. They go to the next engine one
at a time, each on trial until it has gained a token; should that engine crash too, the one on
trial was in both crashes and the others were not both times unproven: it is guilty.
"""

from __future__ import annotations


class Probation:
    """Suspects of one engine, in the order in which they get their trial.

    Attributes:
        on_trial: the suspect that has been sent and has not gained a token since.
    """

    def __init__(self) -> None:
        self.on_trial: int | None = None
        self._tokens_before = 0
        self._held: dict[int, None] = {}

    @property
    def active(self) -> bool:
        return self.on_trial is not None or bool(self._held)

    def holds(self, handle: int) -> bool:
        """A suspect that must wait for its trial."""
        return handle in self._held

    def crashed(self, rows: list[int]) -> int | None:
        """The engine died by itself while it computed `rows`. Returns the guilty one, if known."""
        guilty = self.on_trial if self.on_trial in rows else None
        fresh = [h for h in rows if h != guilty and h not in self._held]
        self._held = {**dict.fromkeys(fresh), **self._held}
        self.on_trial = None
        return guilty

    def killed(self) -> None:
        """The engine died by someone else's hand: the trial starts over, nobody is suspected."""
        if self.on_trial is not None:
            self._held = {self.on_trial: None, **self._held}
            self.on_trial = None

    def next_trial(self, live: dict[int, int]) -> int | None:
        """Given the live handles with their token counts, the next suspect to send, if it is time.

        Ends the present trial if its request has gained a token or is gone.
        """
        current = self.on_trial
        if current is not None:
            if current in live and live[current] <= self._tokens_before:
                return None
            self.on_trial = None
        while self._held:
            handle = next(iter(self._held))
            del self._held[handle]
            if handle in live:
                self.on_trial, self._tokens_before = handle, live[handle]
                return handle
        return None
