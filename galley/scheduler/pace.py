"""`StepPace`: how many prompt tokens fit into a step while others decode, by the time of the steps
so far.
"""

from __future__ import annotations

from galley.spec.costs import mean_without_pauses

#: Tokens of prompts beside decoding rows before any step has been measured.
START = 64
#: Fewest tokens; also the unit: what the kernels compute at once.
UNIT = 16
#: A step may always take so many times as long as one without prompts: where decoding alone is
#: slow, prompts would else hardly advance.
SLOWEST = 3.0
#: Weight of a new measurement.
_NEW = 0.5


class StepPace:
    """Takes a step to need the seconds of its decoding rows, and the same for each prompt token.

    Both are averages of the last steps. What a token needs grows with the context before it; it is
    measured again in each step, and one chunk is much like the next. The same times give the same
    plans.

    Args:
        target: seconds that a step with prompts may take while others decode.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._decode = 0.0
        self._token = 0.0
        self._allowed = START

    def record(self, num_decode: int, num_prompt: int, seconds: float) -> None:
        """A step of so many tokens of decoding rows and of prompts took so long."""
        if not num_prompt:
            known = self._decode or seconds
            self._decode = mean_without_pauses(known, seconds, _NEW)
            return
        decode = min(self._decode, 0.9 * seconds) if num_decode else 0.0
        # A few tokens cost more each than many do, and say little about a full chunk.
        weight = _NEW * min(num_prompt / self._allowed, 1.0)
        token = (seconds - decode) / num_prompt
        self._token = mean_without_pauses(self._token or token, token, weight)

    def prompt_tokens(self) -> int:
        """Most tokens of all prompts in a step in which others decode."""
        if self._token:
            seconds = max(self._target, SLOWEST * self._decode) - self._decode
            self._allowed = max(int(seconds / self._token) // UNIT, 1) * UNIT
        return self._allowed
