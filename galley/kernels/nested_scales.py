"""Scales that are 8-bit codes of levels, with a factor per 256 of them in the order of rows
(csrc/linear.h, "nested")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Scales that share a factor, and outputs that share a list of factors.
RUN, OUTPUTS = 256, 16


def shared_factors(
    factors: NDArray[np.float32], base: NDArray[np.float32], width: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]] | None:
    """Lists of the factors of 16 outputs each, and every output's place in its list.

    Scale g of output n has factor `lists[n // 16, (places[n] + g) // 256]`; the last number of a
    list is what is added to all of them.

    Args:
        factors: [N, G] of each scale.
        base: [N, 1], added to the scales of an output.
        width: numbers of a list.

    Returns:
        ([N / 16, width], [N]); None where they have no such form.
    """
    n, groups = factors.shape
    rows = -(-n // OUTPUTS) * OUTPUTS
    padded = np.concatenate([factors, np.repeat(factors[-1:], rows - n, axis=0)])
    runs = padded.reshape(-1, OUTPUTS * groups)
    changes = runs[:, 1:] != runs[:, :-1]
    numbers = np.concatenate([np.zeros((len(runs), 1), np.int64), changes.cumsum(1)], axis=1)
    if numbers.max() > width - 2:
        return None
    lists = np.zeros((len(runs), width), np.float32)
    lists[np.arange(len(runs))[:, None], numbers] = runs
    lists[:, -1] = base[::OUTPUTS, 0]
    index = numbers.reshape(rows, groups)[:n]
    # The first change within an output's scales says where it is in its run.
    later = index != index[:, :1]
    first = np.where(later.any(1), later.argmax(1), RUN)
    places = ((index[:, 0] + 1) * RUN - first).astype(np.int32)
    same_base = np.repeat(lists[:, -1:], OUTPUTS, axis=0)[:n] == base
    if not same_base.all() or (index != (places[:, None] + np.arange(groups)) // RUN).any():
        return None
    return lists, places


def spread_factors(
    lists: NDArray[np.float32], places: NDArray[np.int32], groups: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The inverse: factors [N, G] and what is added [N, 1]."""
    own = lists[np.arange(len(places)) // OUTPUTS]
    index = (places[:, None] + np.arange(groups)) // RUN
    return np.take_along_axis(own, index, axis=1), own[:, -1:].copy()
