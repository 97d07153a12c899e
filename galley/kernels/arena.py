"""Memory for a program's buffers: one block, shared by buffers whose lifetimes do not overlap.

time →      node 0    1    2    3
buffer a    [=========]
buffer b         [=========]              b is beside a
buffer c                   [====]         c reuses the bytes of a

The result of an op that works in place has the bytes of its input, if nothing reads that later.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops import native_op
from galley.kernels.program import Buffer, Node

ALIGNMENT = 64


class Span(msgspec.Struct, frozen=True):
    """Bytes [start, start + size) of the arena, during nodes first .. last."""

    start: int
    size: int
    first: int
    last: int


class ArenaPlan(msgspec.Struct, frozen=True):
    """Offset of each buffer; `size` is the size of the arena in bytes."""

    spans: dict[Buffer, Span]
    size: int


def lifetimes(nodes: Sequence[Node]) -> dict[Buffer, tuple[int, int]]:
    """First and last node that touches each buffer."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for i, node in enumerate(nodes):
        for symbol in node.values.values():
            lives[symbol.buffer] = (lives.get(symbol.buffer, (i, i))[0], i)
    return lives


def _in_place(
    nodes: Sequence[Node], lives: dict[Buffer, tuple[int, int]]
) -> list[tuple[Buffer, Buffer]]:
    """Input and result of each node that may have one memory for both, in order."""
    pairs = []
    for i, node in enumerate(nodes):
        op, x, out = native_op(node.op), node.values.get("x"), node.writes.get("out")
        if op is None or not op.in_place or x is None or out is None:
            continue
        alike = x.is_whole and out.is_whole and (x.shape, x.kind) == (out.shape, out.kind)
        if alike and lives[x.buffer][1] == i and lives[out.buffer][0] == i:
            pairs.append((x.buffer, out.buffer))
    return pairs


def plan_arena(nodes: Sequence[Node], size_of: Callable[[Buffer], int]) -> ArenaPlan:
    """Place every buffer, largest first, at the lowest offset that is free during its lifetime.

    A buffer is live from the first node that uses it to the last, both included, so that a node's
    inputs and outputs never overlap, but for ops that work in place.
    """
    lives = lifetimes(nodes)
    taken: dict[Buffer, Buffer] = {}  # buffer → the one whose bytes it has
    for x, out in _in_place(nodes, lives):
        if size_of(x) == size_of(out):
            origin = taken[out] = taken.get(x, x)
            lives[origin] = lives[origin][0], lives[out][1]
    for buffer in taken:
        del lives[buffer]
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
    spans |= {buffer: spans[origin] for buffer, origin in taken.items()}
    return ArenaPlan(spans, max((s.start + s.size for s in spans.values()), default=0))


def aligned_bytes(size: int, zeros: bool = False) -> NDArray[np.uint8]:
    """`size` bytes aligned to `ALIGNMENT`; pages are not touched before the first write."""
    memory = (np.zeros if zeros else np.empty)(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


#: madvise values that free the pages of shared memory, and of private memory.
_REMOVE, _DONT_NEED = 9, 4


def release_pages(memory: NDArray[np.uint8]) -> None:
    """Return whole pages of `memory` to the system; they read as zeros afterwards. Does nothing
    where the system has no madvise.
    """
    begin = -(-memory.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (memory.ctypes.data + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if begin >= end or advise is None:
        return
    span = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
    if advise(*span, _REMOVE):
        advise(*span, _DONT_NEED)
