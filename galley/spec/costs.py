"""`StepCosts`: how long a step takes by the number of its tokens, measured as steps are taken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Weight of a new measurement.
_NEW = 0.2
#: A measurement counts for so many steps.
FRESH = 128
_KEPT = 4096
#: The assumed cost of one more token, as a fraction of a step, before it has been measured.
_PRIOR_SLOPE = 0.04


def mean_without_pauses(known: float, measured: float, weight: float) -> float:
    """A running average with a new measurement. A pause of the machine, which is no property of the
    step, counts as twice the average at most.
    """
    return known + weight * (min(max(measured, known / 2), known * 2) - known)


class StepCosts:
    """Seconds of decode steps by their tokens, 1 … `most`. More tokens are not recorded."""

    def __init__(self, most: int) -> None:
        self._seconds: NDArray[np.float64] = np.zeros(most + 1)
        self._measured: NDArray[np.int64] = np.zeros(most + 1, np.int64)
        self._step = 0

    def record(self, tokens: int, seconds: float) -> None:
        """A step of nothing but decode rows took so long."""
        self._step += 1
        if tokens >= len(self._seconds):
            return
        known = self._seconds[tokens]
        if known and self._step - self._measured[tokens] < _KEPT:
            seconds = mean_without_pauses(known, seconds, _NEW)
        self._seconds[tokens], self._measured[tokens] = seconds, self._step

    def is_fresh(self, tokens: int) -> bool:
        """Whether a step of so many tokens was measured lately."""
        if tokens >= len(self._seconds) or not self._seconds[tokens]:
            return False
        return bool(self._step - self._measured[tokens] < FRESH)

    def known(self, tokens: int) -> float:
        """Seconds of a step of so many tokens as measured; 0 where there is no measurement."""
        return float(self._seconds[tokens])

    def curve(self, tokens: int, more: int) -> NDArray[np.float64]:
        """Seconds of steps of `tokens` … `tokens + more` tokens, float64 [more + 1].

        `tokens` has been measured. Between measurements it is interpolated, beyond the last one
        the mean slope goes on.
        """
        seconds = self._seconds[tokens : tokens + more + 1]
        kept = self._step - self._measured[tokens : tokens + more + 1] < _KEPT
        known = np.flatnonzero((seconds > 0) & kept)
        first, last = seconds[0], int(known[-1])
        result: NDArray[np.float64] = np.interp(np.arange(more + 1), known, seconds[known])
        slope = _PRIOR_SLOPE * first
        if last:
            slope = max((seconds[last] - first) / last, 0.25 * slope)
        result[last + 1 :] = seconds[last] + slope * np.arange(1, more + 1 - last)
        return np.maximum.accumulate(result)
