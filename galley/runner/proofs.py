"""Which files have been read whole and found to be what was written, so that it is done once.

    proven.json, beside the files:  {name: [boot, device, inode, size, changed, written, checksum]}

A proof is good for the very same file until the machine starts again: whatever writes to a file,
through a mapping too, gives it another time of change, which nobody can set. What a proof cannot
know is a disk that later reads back something else; hence it ends with the boot, since a file that
a loss of power has torn shows after it. Knows nothing of what is in the files.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

#: A file that has changed within so many nanoseconds might change again at the same time of change.
SETTLED_NS = 2_000_000_000
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LARGEST = 1 << 20

#: What a proof is about: of equal ones, one is enough.
Stamp = list[str | int]


def stamp_of(status: os.stat_result, checksum: int) -> Stamp | None:
    """The state of a file that claims `checksum`; None where it could not be told from a later one.

    Args:
        status: `os.fstat` of it from before it is read.
    """
    try:
        boot = _BOOT.read_text().strip()
    except OSError:
        return None
    if abs(time.time_ns() - status.st_ctime_ns) < SETTLED_NS:
        return None
    times = status.st_ctime_ns, status.st_mtime_ns
    return [boot, status.st_dev, status.st_ino, status.st_size, *times, checksum]


def is_proven(path: Path, stamp: Stamp | None) -> bool:
    """Whether the file in this state has been read whole."""
    return stamp is not None and _proofs(path.parent).get(path.name) == stamp


def proven(path: Path, stamp: Stamp | None) -> None:
    """Keep that it has been; forget the files that are gone. Where it cannot be kept, it is not."""
    if stamp is None:
        return
    folder = path.parent
    proofs = {n: s for n, s in _proofs(folder).items() if (folder / n).exists()}
    proofs[path.name] = stamp
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, suffix=".part", delete=False, encoding="utf-8"
        ) as f:
            json.dump(proofs, f)
        os.replace(f.name, folder / "proven.json")
    except OSError:
        return


def _proofs(folder: Path) -> dict[str, object]:
    """What is kept; nothing where it is damaged."""
    try:
        with (folder / "proven.json").open("rb") as f:
            found = json.loads(f.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
