"""Remembers which files have had their checksum verified, so that each is read once per boot, and
not at all in the boot in which it was written.

    verified.json, beside the files:  {name: [boot, device, inode, size, ctime, mtime, checksum]}

An entry holds for the same file until the machine reboots. Every write to a file, through a mapping
too, changes its ctime, which no process can set. A disk that later returns other data cannot be
detected this way; a file torn by a power loss shows after the reboot, when entries have expired.
Knows nothing of the files' contents.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from pathlib import Path

#: A file that changed within so many nanoseconds might change again at the same ctime: some ticks
#: of the clock, and two seconds where a file system counts in seconds.
SETTLED_NS, SECONDS_SETTLED_NS = 100_000_000, 2_000_000_000
INDEX = "verified.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MAX_INDEX_BYTES = 1 << 20

#: Identifies one state of a file: boot, device, inode, size, ctime, mtime, checksum.
FileState = list[str | int]


def file_state(status: os.stat_result, checksum: int) -> FileState | None:
    """The state of a file that claims `checksum`; None if a later state might look the same.

    Args:
        status: `os.fstat` of the file from before it is read.
    """
    try:
        boot = _BOOT.read_text().strip()
    except OSError:
        return None
    if abs(time.time_ns() - status.st_ctime_ns) < _settling(status):
        return None
    times = status.st_ctime_ns, status.st_mtime_ns
    return [boot, status.st_dev, status.st_ino, status.st_size, *times, checksum]


def is_verified(path: Path, state: FileState | None) -> bool:
    """Whether the file was verified in this state."""
    return state is not None and _read_index(path.parent).get(path.name) == state


def mark_verified(path: Path, state: FileState | None) -> None:
    """Record the file as verified and drop entries of deleted files. Best effort."""
    if state is None:
        return
    folder = path.parent
    index = {name: s for name, s in _read_index(folder).items() if (folder / name).exists()}
    index[path.name] = state
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, suffix=".part", delete=False, encoding="utf-8"
        ) as f:
            json.dump(index, f)
        os.replace(f.name, folder / INDEX)
    except OSError:
        return


def mark_when_settled(path: Path, checksum: int) -> None:
    """Record a file that this process has just written as verified, as soon as a later change would
    show: a process that ends waits for that. Nothing is recorded if the file changes before."""
    written = path.stat()

    def mark() -> None:
        try:
            status = path.stat()
        except OSError:
            return
        now, before = ((s.st_dev, s.st_ino, s.st_size, s.st_ctime_ns) for s in (status, written))
        if now == before:
            mark_verified(path, file_state(status, checksum))

    threading.Timer(_settling(written) / 1e9 + 0.1, mark).start()


def _settling(status: os.stat_result) -> int:
    """Nanoseconds after a file's change in which another one might not show."""
    return SETTLED_NS if status.st_ctime_ns % 10**9 else SECONDS_SETTLED_NS


def _read_index(folder: Path) -> dict[str, object]:
    """The recorded states by file name; empty if the index is missing or damaged."""
    try:
        with (folder / INDEX).open("rb") as f:
            index = json.loads(f.read(_MAX_INDEX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}
