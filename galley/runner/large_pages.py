"""Large pages for files that are mapped."""

from __future__ import annotations

import mmap


def use_large_pages(mapped: mmap.mmap) -> None:
    """Ask the system to keep a mapping in large pages; without them, small ones do."""
    try:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, AttributeError):
        pass
