"""The files of packed weights in the cache folder: found, marked as used, removed.

    GALLEY_CACHE_DIR | $VLLM_CACHE_ROOT/galley | $XDG_CACHE_HOME/galley | ~/.cache/galley
        weights/<model>-<place>-<key>.packed        one file of packed weights
        weights/<model>-<place>-<key>.packed.used   empty; its mtime is the last use
        weights/*.part                              being written, or left by a crash

A process that maps a file holds a shared lock on it (`lock_shared`), which ends with the mapping.
A file is removed only under an exclusive lock, so never one in use. Knows nothing of the files'
contents.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".packed"
_USED = ".used"
#: A partial file of this age was left by a crash.
ABANDONED_AFTER_S = 3600
#: Disk space that stays free.
SPARE_BYTES = 2 * 2**30


class CacheFile(NamedTuple):
    """One file of packed weights.

    Attributes:
        model: name of the model, as far as the file's name tells it.
        num_bytes: size on disk.
        used: seconds since the epoch of its last use, or of its writing.
    """

    path: Path
    model: str
    num_bytes: int
    used: float

    @property
    def place(self) -> str:
        """Equal for all states of one checkpoint, number format and rank."""
        return place_of(self.path)


def cache_root(env: Mapping[str, str] = os.environ) -> Path:
    """The folder for files that can be rebuilt."""
    if own := env.get("GALLEY_CACHE_DIR"):
        return Path(own)
    if shared := env.get("VLLM_CACHE_ROOT"):
        return Path(shared) / "galley"
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "galley"


def weights_folder() -> Path:
    return cache_root() / "weights"


def place_of(path: Path) -> str:
    return path.name.rsplit("-", 1)[0]


def list_files(folder: Path) -> list[CacheFile]:
    """The files of a folder, least recently used first; none if there is no such folder."""
    files = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):  # removed by another process
            status = path.stat()
            used = status.st_mtime
            with contextlib.suppress(OSError):
                used = max(used, _mark_of(path).stat().st_mtime)
            model = path.name.rsplit("-", 2)[0]
            files.append(CacheFile(path, model, status.st_size, used))
    return sorted(files, key=lambda file: (file.used, file.path.name))


def mark_used(path: Path) -> None:
    """Record that the file is used now. Its own times stay: they tell whether it has changed."""
    with contextlib.suppress(OSError):
        _mark_of(path).touch()


def lock_shared(fd: int) -> None:
    """Keep the file from being removed until `fd` and its duplicates are closed. Best effort:
    some file systems have no locks.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_used(path: Path) -> bool:
    """Whether a process maps the file."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as f:
        return not _lock_exclusive(f.fileno())
    return False


def remove(path: Path) -> bool:
    """Remove a file that no process maps. Returns whether it is gone."""
    try:
        with path.open("rb") as f:
            if not _lock_exclusive(f.fileno()):
                return False
            path.unlink(missing_ok=True)
            _mark_of(path).unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove_all(files: Iterable[CacheFile]) -> list[CacheFile]:
    """Remove the files that no process maps; returns them."""
    return [file for file in files if remove(file.path)]


def shrink(folder: Path, most: int, keep: frozenset[Path] = frozenset()) -> list[CacheFile]:
    """Remove least recently used files until all together have at most `most` bytes.

    Files in use and those of `keep` stay. Returns what was removed.
    """
    files = list_files(folder)
    excess = sum(file.num_bytes for file in files) - most
    removed = []
    for file in files:
        if excess <= 0:
            break
        if file.path not in keep and remove(file.path):
            removed.append(file)
            excess -= file.num_bytes
    return removed


def make_room(folder: Path, num_bytes: int, limit: int | None) -> bool:
    """Make room for a file of so many bytes: least recently used ones are removed.

    Nothing is removed for a file that cannot fit anyway.

    Args:
        limit: bytes of all files together; None: half of the disk.

    Returns whether there is room.
    """
    disk = shutil.disk_usage(folder)
    limit = disk.total // 2 if limit is None else limit
    files = list_files(folder)
    total = sum(file.num_bytes for file in files)
    # The limit is also bounded by the space of the disk without the cache's other files.
    limit = min(limit, total + disk.free - SPARE_BYTES)
    fixed = sum(file.num_bytes for file in files if is_used(file.path))
    if fixed + num_bytes > limit:
        return False
    shrink(folder, limit - num_bytes)
    return sum(file.num_bytes for file in list_files(folder)) + num_bytes <= limit


def remove_abandoned(folder: Path) -> None:
    """Remove partial files that were left by a crash, and marks of files that are gone."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED_AFTER_S:
                part.unlink()
    for mark in folder.glob(f"*{SUFFIX}{_USED}"):
        if not mark.with_suffix("").exists():
            mark.unlink(missing_ok=True)


def _mark_of(path: Path) -> Path:
    return path.with_name(path.name + _USED)


def _lock_exclusive(fd: int) -> bool:
    """Whether no other process has a lock on the file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True
