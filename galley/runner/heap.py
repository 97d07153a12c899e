"""Memory of the C library's allocator: freed parts of it go back to the operating system."""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # malloc.h


def collect_and_trim() -> None:
    """Collect garbage and return the allocator's free pages to the system.

    An engine freezes its objects after start-up, so that collections skip them. They are unfrozen
    for this collection and frozen again.
    """
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()
    trim()


def trim() -> None:
    """Return the allocator's free pages to the system."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if malloc_trim is not None:
        malloc_trim(0)


def share_one_heap() -> None:
    """Have threads that start from now on allocate from the heaps that there are. What is freed at
    the end of a heap goes back to the system only from the first one: each thread that packs
    weights would keep some megabytes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
