"""Optional measurements of an engine: the work of its steps, and lifetimes of cached blocks.

--enable-mfu-metrics estimates operations and bytes from the sizes of the model and the tokens of
each step; --kv-cache-metrics follows a sample of the cached blocks from creation to eviction.
Knows columns and block ids, but neither scheduler nor pool.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.kv.listener import StoredBlock
from galley.messages import Counters


class Sizes(msgspec.Struct, frozen=True):
    """Sizes of a decoder, for estimates.

    Attributes:
        linear_weights: elements of the matrices that every token is multiplied with.
        vocab_weights: elements of the matrix that gives logits.
        attention_width: query heads × head size, over all layers.
        weight_bytes: size of all weights in memory.
        kv_bytes: size of one token's keys and values, over all layers.
    """

    linear_weights: int
    vocab_weights: int
    attention_width: int
    weight_bytes: int
    kv_bytes: int


class Workload:
    """Estimates floating point operations and bytes, and adds them to an engine's counters.

    A multiplication with an addition counts as two operations. Each step reads all weights once.
    """

    def __init__(self, sizes: Sizes, counters: Counters) -> None:
        self._sizes = sizes
        self._counters = counters

    def add(self, num_new: NDArray[np.int32], num_computed: NDArray[np.int32], logits: int) -> None:
        """Count a step.

        Args:
            num_new, num_computed: of each row: tokens computed now, and before.
            logits: rows of logits.
        """
        new, before = num_new.astype(np.float64), num_computed.astype(np.float64)
        tokens = float(new.sum())
        # Token j of a row attends to those before it and to itself: before + 1 … before + new.
        seen = float((new * before + new * (new + 1) / 2).sum())
        size, counters = self._sizes, self._counters
        counters.flops += 2 * (tokens * size.linear_weights + logits * size.vocab_weights)
        counters.flops += 4 * seen * size.attention_width
        counters.read_bytes += size.weight_bytes + float((before + new).sum()) * size.kv_bytes
        counters.write_bytes += tokens * size.kv_bytes


class BlockLifetimes:
    """Lifetimes of cached blocks in seconds: from creation to eviction, idle before it, and between
    two uses. A `galley.kv.KVListener`.

    Args:
        sample: share of the blocks that are followed, in (0, 1]. Chosen by content, so that the
            blocks of one prompt are followed or not independently of each other.
    """

    def __init__(self, sample: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._below = int(sample * 2**32)
        self._clock = clock
        #: block → (creation, last use)
        self._followed: dict[int, tuple[float, float]] = {}
        self._lifetimes, self._idle, self._gaps = array("f"), array("f"), array("f")

    def stored(self, stored: StoredBlock) -> None:
        if int.from_bytes(stored.key[:4], "little") < self._below:
            now = self._clock()
            self._followed[stored.block] = (now, now)

    def hit(self, blocks: list[int]) -> None:
        """Cached blocks were hit by a request."""
        followed = self._followed
        if not followed:
            return
        now = self._clock()
        for block in blocks:
            times = followed.get(block)
            if times is not None:
                self._gaps.append(now - times[1])
                followed[block] = (times[0], now)

    def removed(self, block: int, key: bytes) -> None:
        times = self._followed.pop(block, None)
        if times is not None:
            now = self._clock()
            self._lifetimes.append(now - times[0])
            self._idle.append(now - times[1])

    def cleared(self) -> None:
        self._followed.clear()

    def take(self) -> list[bytes]:
        """Lifetimes, idle times and gaps since the last call, as float32 bytes; [] for none."""
        columns = (self._lifetimes, self._idle, self._gaps)
        if not any(columns):
            return []
        taken = [column.tobytes() for column in columns]
        for column in columns:
            del column[:]
        return taken
