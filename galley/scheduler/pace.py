"""`StepPace`: how many prompt tokens fit into a step while others decode, by the time of the steps
so far.
"""

from __future__ import annotations

#: Tokens of prompts beside decoding rows before any step has been measured.
START = 64
#: Fewest tokens; also the unit: what the kernels compute at once.
UNIT = 16
#: The target is at least so many times a step without prompts: where decoding alone is slow,
#: prompts would else hardly advance. With 3, p99 of the time between two tokens of 32 equal
#: clients is more than three times its median.
SLOWEST = 2.5
#: Where several prompts wait, the target is longer by the ratio of those beyond the first to the
#: decoding rows, at most so many times: every step reads all weights, and fewer are needed until
#: all rows decode.
MOST_TARGETS = 3.0
#: A measured time of decoding rows holds for so many rows more or fewer and a quarter of those
#: measured, and for so many steps with prompts.
_FEW_ROWS, _KEPT = 4, 64
#: Weight of a new measurement.
_NEW = 0.5


class StepPace:
    """Takes a step to need the seconds of its decoding rows, and the same for each prompt token.

    Both are averages of the last steps. What a token needs grows with the context before it; it is
    measured again in each step, and one chunk is much like the next. What the rows need shows only
    in a step without prompts. While prompts wait there would be none, so one is inserted where the
    last measurement no longer holds. The same times give the same plans.

    Args:
        target: seconds that a step with prompts may take while others decode.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._decode = 0.0
        self._decode_rows = 0
        self._age = 0
        self._token = 0.0
        self._allowed = START

    def record(self, num_decode: int, num_prompt: int, seconds: float) -> None:
        """A step of so many tokens of decoding rows and of prompts took so long."""
        if not num_prompt:
            self._record_decode(num_decode, seconds)
            return
        self._age += bool(num_decode)
        decode = min(self._decode, 0.9 * seconds) if num_decode else 0.0
        # A few tokens cost more each than many do, and say little about a full chunk.
        weight = _NEW * min(num_prompt / self._allowed, 1.0)
        token = (seconds - decode) / num_prompt
        self._token = mean_without_pauses(self._token or token, token, weight)

    def _record_decode(self, num_decode: int, seconds: float) -> None:
        if self._holds(num_decode):
            seconds = mean_without_pauses(self._decode, seconds, _NEW)
        elif self._decode:  # a pause of the machine counts as twice the time at most, here too
            growth = max(num_decode / self._decode_rows, 1.0)
            seconds = min(seconds, 2 * growth * self._decode)
        self._decode, self._decode_rows, self._age = seconds, num_decode, 0

    def _holds(self, num_decode: int) -> bool:
        """Whether the time of decoding rows is known for so many tokens."""
        rows = self._decode_rows
        near = abs(num_decode - rows) <= _FEW_ROWS + rows // 4
        return rows > 0 and near and self._age < _KEPT

    def prompt_tokens(self, num_decode: int, num_prompts: int) -> int:
        """Most tokens of all prompts in a step; 0 = the decoding rows are to be measured.

        Args:
            num_decode: tokens of decoding rows in the step, at least one.
            num_prompts: sequences that have no place among these rows yet.
        """
        if not self._holds(num_decode):
            return 0
        if self._token:
            target = max(self._target, SLOWEST * self._decode)
            target *= min(1.0 + max(num_prompts - 1, 0) / num_decode, MOST_TARGETS)
            seconds = target - self._decode
            self._allowed = max(int(seconds / self._token) // UNIT, 1) * UNIT
        return self._allowed


def mean_without_pauses(known: float, measured: float, weight: float) -> float:
    """A running average with a new measurement. A pause of the machine, which is no property of the
    step, counts as twice the average at most.
    """
    return known + weight * (min(max(measured, known / 2), known * 2) - known)
