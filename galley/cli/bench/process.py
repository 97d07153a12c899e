"""CPU seconds and memory of processes, from /proc (Linux)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """Resource usage of one or more processes: CPU seconds so far, resident and proportional bytes.

    Proportional memory (PSS) counts a page shared by n processes as 1/n: the sum over the
    processes of a server is its actual memory use.
    """

    cpu: float = 0.0
    rss: int = 0
    pss: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu + other.cpu, self.rss + other.rss, self.pss + other.pss)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state (field 3) on; [] if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    pids, todo = [], [pid]
    while todo:
        parent = todo.pop()
        pids.append(parent)
        todo += children.get(parent, [])
    return pids


def cpu_seconds(pid: int) -> float:
    """User and system CPU seconds of a process; 0 if it is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICK if fields else 0.0


def usage(pid: int) -> Usage:
    """Usage of one process; zeros if it is gone."""
    fields = _stat(pid)
    if not fields:
        return Usage()
    pss = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                pss = int(line.split()[1]) * 1024
    except OSError:
        pass
    return Usage(cpu_seconds(pid), int(fields[21]) * _PAGE, pss)


def tree_usage(pid: int) -> Usage:
    """Total usage of a process and all its descendants."""
    return sum((usage(member) for member in tree(pid)), Usage())


def machine_busy() -> float:
    """Busy CPU seconds of the whole machine so far, over all cores."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) / _TICK
