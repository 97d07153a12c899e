"""Memory for a program's buffers: one block, shared by buffers whose lifetimes do not meet.

time →      node 0    1    2    3
buffer a    [=========]
buffer b         [=========]              b lies beside a
buffer c                   [====]         c lies where a was
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galley.kernels.program import Buffer, Node

ALIGNMENT = 64


@dataclass(frozen=True)
class Span:
    """Bytes [start, start + size) of the arena, during nodes first .. last."""

    start: int
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class ArenaPlan:
    """Where each buffer lies. `size` is the arena's, in bytes."""

    spans: dict[Buffer, Span]
    size: int


def lifetimes(nodes: Sequence[Node]) -> dict[Buffer, tuple[int, int]]:
    """First and last node that touches each buffer."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for i, node in enumerate(nodes):
        for symbol in node.values.values():
            lives[symbol.buffer] = (lives.get(symbol.buffer, (i, i))[0], i)
    return lives


def plan_arena(nodes: Sequence[Node], size_of: Callable[[Buffer], int]) -> ArenaPlan:
    """Place every buffer, the largest first, at the lowest bytes that are free while it lives.

    A buffer is alive from the node that first touches it to the one that last does, both
    included: what a node reads and what it writes never overlap.
    """
    lives = lifetimes(nodes)
    spans: dict[Buffer, Span] = {}
    for buffer in sorted(lives, key=size_of, reverse=True):
        first, last = lives[buffer]
        size = -(-size_of(buffer) // ALIGNMENT) * ALIGNMENT
        others = [s for s in spans.values() if s.first <= last and first <= s.last]
        start = 0
        for span in sorted(others, key=lambda s: s.start):
            if start + size <= span.start:
                break
            start = max(start, span.start + span.size)
        spans[buffer] = Span(start, size, first, last)
    return ArenaPlan(spans, max((s.start + s.size for s in spans.values()), default=0))


def aligned_bytes(size: int, zeros: bool = False) -> NDArray[np.uint8]:
    """`size` bytes at a multiple of `ALIGNMENT`, untouched until first written."""
    memory = (np.zeros if zeros else np.empty)(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


#: Advice that frees the pages of a file of memory, and of memory without a file.
_REMOVE, _DONT_NEED = 9, 4


def give_back(memory: NDArray[np.uint8]) -> None:
    """Return the whole pages of `memory` to the system: they take none until they are written
    again, and are zeros then. Where the system cannot, nothing happens.
    """
    begin = -(-memory.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (memory.ctypes.data + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if begin >= end or advise is None:
        return
    span = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
    if advise(*span, _REMOVE):
        advise(*span, _DONT_NEED)
