"""Returns freed memory to the operating system."""

from __future__ import annotations

import ctypes
import gc


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
