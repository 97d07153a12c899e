"""Returns freed memory to the operating system."""

from __future__ import annotations

import ctypes
import gc


def trim_heap() -> None:
    """Collect garbage and return the allocator's free pages to the system.

    An engine freezes its objects after start-up, so that collections skip them. They are unfrozen
    for this collection and frozen again.
    """
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
