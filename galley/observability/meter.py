"""What an engine measures only when asked to: the work of its steps, and the lives of its blocks.

--enable-mfu-metrics estimates operations and bytes from the sizes of the model and the tokens of
each step; --kv-cache-metrics follows a sample of the cached blocks from birth to eviction. It
knows columns and block ids, neither scheduler nor pool.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sizes:
    """Of a decoder, for estimates.

    Attributes:
        linear_weights: elements of the matrices that every token is multiplied with.
        vocab_weights: elements of the matrix that gives logits.
        attention_width: query heads × head size, over all layers.
        weight_bytes: of all weights, as they lie in memory.
        kv_bytes: of one token's keys and values, over all layers.
    """

    linear_weights: int
    vocab_weights: int
    attention_width: int
    weight_bytes: int
    kv_bytes: int


class Workload:
    """Floating point operations and bytes since the start, estimated.

    A multiplication with an addition counts as two operations. Each step reads all weights once.
    """

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self.flops = self.read_bytes = self.write_bytes = 0.0

    def add(self, num_new: NDArray[np.int32], num_computed: NDArray[np.int32], logits: int) -> None:
        """Count a step.

        Args:
            num_new, num_computed: of each row: tokens computed now, and before.
            logits: rows of logits.
        """
        new, before = num_new.astype(np.float64), num_computed.astype(np.float64)
        tokens = float(new.sum())
        # Token j of a row sees those before it and itself: before + 1 … before + new.
        seen = float((new * before + new * (new + 1) / 2).sum())
        size = self._sizes
        self.flops += 2 * (tokens * size.linear_weights + logits * size.vocab_weights)
        self.flops += 4 * seen * size.attention_width
        self.read_bytes += size.weight_bytes + float((before + new).sum()) * size.kv_bytes
        self.write_bytes += tokens * size.kv_bytes


class BlockLifetimes:
    """Lives of cached blocks, in seconds: from birth to eviction, idle before it, and between two
    uses. A `BlockListener` of the block pool (galley.kv).

    Args:
        sample: share of the blocks that are followed, in (0, 1]. Chosen by content, so that the
            blocks of one prompt are followed or not independently of each other.
    """

    def __init__(self, sample: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._below = int(sample * 2**32)
        self._clock = clock
        #: block → (birth, last use)
        self._lives: dict[int, tuple[float, float]] = {}
        self._lifetimes, self._idle, self._gaps = array("f"), array("f"), array("f")

    def stored(self, block: int, key: bytes) -> None:
        if int.from_bytes(key[:4], "little") < self._below:
            now = self._clock()
            self._lives[block] = (now, now)

    def shared(self, blocks: list[int]) -> None:
        """Cached blocks were hit by a request."""
        lives = self._lives
        if not lives:
            return
        now = self._clock()
        for block in blocks:
            life = lives.get(block)
            if life is not None:
                self._gaps.append(now - life[1])
                lives[block] = (life[0], now)

    def removed(self, block: int, key: bytes) -> None:
        life = self._lives.pop(block, None)
        if life is not None:
            now = self._clock()
            self._lifetimes.append(now - life[0])
            self._idle.append(now - life[1])

    def cleared(self) -> None:
        self._lives.clear()

    def take(self) -> list[bytes]:
        """Lifetimes, idle times and gaps since the last call, as float32 bytes; [] for none."""
        columns = (self._lifetimes, self._idle, self._gaps)
        if not any(columns):
            return []
        found = [column.tobytes() for column in columns]
        for column in columns:
            del column[:]
        return found


class MeteredStats(Protocol):
    """What is filled in of `galley.messages.Stats`."""

    flops: float
    read_bytes: float
    write_bytes: float
    block_times: list[bytes]


class Meter:
    """Both, where they are wanted."""

    def __init__(self, workload: Workload | None, lives: BlockLifetimes | None) -> None:
        self.workload = workload
        self.lives = lives

    def tell(self, stats: MeteredStats) -> None:
        """Add to `stats` what there is to tell."""
        if self.workload is not None:
            stats.flops = self.workload.flops
            stats.read_bytes = self.workload.read_bytes
            stats.write_bytes = self.workload.write_bytes
        if self.lives is not None:
            stats.block_times = self.lives.take()
