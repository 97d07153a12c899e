"""Memory that outlives an engine: its KV cache and the index of its contents.

The launcher creates two anonymous files, one of each, and every incarnation of the engine maps
them. They use memory only where they have been written, and none once the launcher has ended. Their
format is defined in `block_index`. Imports nothing heavy.
"""

from __future__ import annotations

import mmap
import os

import msgspec

from galley.runner.large_pages import use_large_pages


class KVFiles(msgspec.Struct, frozen=True):
    """File descriptors, valid in the launcher and its children."""

    kv: int
    index: int

    @staticmethod
    def make() -> KVFiles | None:
        """None if the system has no such files."""
        if not hasattr(os, "memfd_create"):
            return None
        return KVFiles(os.memfd_create("galley-kv"), os.memfd_create("galley-kv-index"))

    def discard(self) -> None:
        """Discard the contents and free their memory. No process may have them mapped."""
        for fd in (self.index, self.kv):
            os.ftruncate(fd, 0)

    def close(self) -> None:
        for fd in (self.index, self.kv):
            os.close(fd)


def map_file(fd: int, size: int) -> mmap.mmap:
    """Map a whole file, resized to `size` bytes; new bytes are zero."""
    os.ftruncate(fd, size)
    mapped = mmap.mmap(fd, size)
    use_large_pages(mapped)
    return mapped
