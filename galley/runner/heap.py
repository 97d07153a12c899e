"""Freed memory back to the system."""

from __future__ import annotations

import ctypes
import gc


def trim_heap() -> None:
    """Collect what is garbage, and return what the allocator holds of it to the system.

    An engine freezes its objects after start-up, so that no collection looks at them: here it must.
    """
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
