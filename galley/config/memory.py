"""Total and available memory of the machine and of the control groups of this process.

machine           MemAvailable minus our own mapped files (weights that would have to be read
                  from disk again if they were dropped)
control group     limit - usage + inactive file pages, of version 2
                  (memory.max) or 1 (memory.limit_in_bytes), of our group and of all above it
stalls            PSI: fraction of time in which all tasks stalled on memory
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, and a fraction of time.

    Attributes:
        total: of the machine, or the lowest limit of a control group if that is lower.
        available: bytes that can still be allocated.
        stalled: 0 … 1, over the last ten seconds; 0 if the kernel does not report it.
    """

    total: int
    available: int
    stalled: float = 0.0


class MemorySource(Protocol):
    """Reads the state of memory."""

    def read(self) -> Memory: ...


class MachineMemory:
    """The memory of this machine.

    Args:
        root: folder with `proc` and `sys`, for tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        self._groups = list(_control_groups(root))
        pressures = [group.folder / "memory.pressure" for group in self._groups]
        pressures.append(self._proc / "pressure/memory")
        self._pressure = next((path for path in pressures if path.exists()), None)

    def read(self) -> Memory:
        machine = _fields(self._proc / "meminfo")
        if "MemAvailable" in machine:
            total, available = machine["MemTotal"] * 1024, machine["MemAvailable"] * 1024
            available -= _fields(self._proc / "self/status").get("RssFile", 0) * 1024
        else:
            total = available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        for group in self._groups:
            if (limit := group.limit()) is not None and limit < total:
                total = limit
            if limit is not None and (used := group.used()) is not None:
                available = min(available, limit - used)
        return Memory(total, max(available, 0), self._stalled())

    def _stalled(self) -> float:
        try:
            text = self._pressure.read_text() if self._pressure is not None else ""
        except OSError:
            return 0.0
        for line in text.splitlines():
            if line.startswith("full avg10="):
                return float(line.split()[1].removeprefix("avg10=")) / 100
        return 0.0


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group's folder and the names of its files."""

    folder: Path
    limit_file: str
    used_file: str
    idle_files: str

    def limit(self) -> int | None:
        return _number(self.folder / self.limit_file)

    def used(self) -> int | None:
        used = _number(self.folder / self.used_file)
        if used is None:
            return None
        return used - _fields(self.folder / "memory.stat").get(self.idle_files, 0)


_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _control_groups(root: Path) -> Iterator[_Group]:
    """Our control group and its ancestors that have a memory limit.

    In a container the path that /proc names may not exist; then the mounted root is the group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = mount, _V2
        elif "memory" in controllers.split(","):
            base, names = mount / "memory", _V1
        else:
            continue
        here = base / path.strip("/")
        folders = [here, *here.parents] if here.exists() else [base]
        for folder in folders:
            if (folder / names[0]).exists():
                yield _Group(folder, *names)
            if folder == base:
                break


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none ("max"), or no file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Name → number of a file with lines of both."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.replace(":", " ").split()[:2] for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
