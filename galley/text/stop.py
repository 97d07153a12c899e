"""Stop strings in a text that arrives in pieces.

All text may be shown except the longest suffix that is a proper prefix of a stop string; that
suffix is held back until the next piece decides. So a stop string is found wherever the pieces'
borders fall, and no part of it is shown too early.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class StopMatcher:
    """Holds back what may become a stop string, and cuts at the first that does.

    The first to be completed wins, as if the text came character by character; of two completed by
    the same character, the one given first.
    """

    __slots__ = ("_held", "_include", "_prefixes", "_stops", "matched")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """`include`: the stop string itself is shown. `stops` must not contain ""."""
        self._stops = tuple(stops)
        self._include = include
        # last character of a proper prefix → (stop, lengths of its prefixes that end so, ascending)
        self._prefixes: dict[str, list[tuple[str, list[int]]]] = {}
        for stop in self._stops:
            lengths: dict[str, list[int]] = {}
            for length in range(1, len(stop)):
                lengths.setdefault(stop[length - 1], []).append(length)
            for char, ending in lengths.items():
                self._prefixes.setdefault(char, []).append((stop, ending))
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, armed: bool = True) -> str:
        """The text that may be shown now. After a match there is none.

        `armed=False`: a stop string that ends inside `text` does not count (min_tokens).
        """
        if self.matched is not None or not text:
            return ""
        seen_length = len(self._held)
        text = self._held + text
        if armed:
            match = self._first_match(text, seen_length)
            if match is not None:
                end, self.matched = match
                self._held = ""
                return text[: end if self._include else end - len(self.matched)]
        keep = self._held_length(text)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep] if keep else text

    def finish(self) -> str:
        """The text that was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str, seen_length: int) -> tuple[int, str] | None:
        """(end, stop) of the first stop string that ends after `seen_length` characters."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            start = text.find(stop, max(0, seen_length - len(stop) + 1))
            if start >= 0 and (best is None or start + len(stop) < best[0]):
                best = (start + len(stop), stop)
        return best

    def _held_length(self, text: str) -> int:
        """Length of the longest suffix that is a proper prefix of a stop string."""
        longest = 0
        for stop, lengths in self._prefixes.get(text[-1], ()):
            for i in range(bisect_right(lengths, len(text)) - 1, -1, -1):
                length = lengths[i]
                if length <= longest:
                    break
                if stop.startswith(text[-length:]):
                    longest = length
                    break
        return longest
