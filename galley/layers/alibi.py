"""ALiBi: scores fall with distance, at a slope per head, in place of position embeddings."""

from __future__ import annotations

import math


def alibi_slopes(heads: int, most: float = 8.0) -> tuple[float, ...]:
    """The slope of each head, as in the paper (Press et al., "Train Short, Test Long").

    With n heads, a power of two: 2 ** (-most / n) to the power of 1, 2, … n. Otherwise those of the
    power of two below, then every other one of the power of two above.
    """
    below = 2 ** int(math.log2(heads))
    slopes = [2 ** (-most * i / below) for i in range(1, below + 1)]
    rest = [2 ** (-most / 2 * i / below) for i in range(1, 2 * (heads - below), 2)]
    return tuple(slopes + rest)
