"""Memory that outlives an engine: its KV cache, and the ledger of what that holds.

The launcher makes two files without a name, one of each, and every incarnation of the engine maps
them. They take memory only where they have been written, and none once the launcher has gone. What
is in them is another's business (`ledger`); imports nothing heavy.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KVFiles:
    """File descriptors, good in the launcher and in what it forks."""

    kv: int
    index: int

    @staticmethod
    def make() -> KVFiles | None:
        """None where the system has no such files."""
        if not hasattr(os, "memfd_create"):
            return None
        return KVFiles(os.memfd_create("galley-kv"), os.memfd_create("galley-kv-index"))

    def discard(self) -> None:
        """Forget the contents and free their memory; nobody may have them mapped."""
        for fd in (self.index, self.kv):
            os.ftruncate(fd, 0)

    def close(self) -> None:
        for fd in (self.index, self.kv):
            os.close(fd)


def map_file(fd: int, size: int) -> mmap.mmap:
    """All of a kept file, made `size` bytes long: what is new in it is zeros."""
    os.ftruncate(fd, size)
    mapped = mmap.mmap(fd, size)
    try:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, AttributeError):
        pass  # small pages, then
    return mapped
