"""CPU time of a server's threads by role, and time spent waiting for a core (Linux).

Roles are derived from process titles: main threads of the engine and of the front end, and the
other threads, which compute.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Times:
    """Seconds so far on a core, and waiting for one."""

    cpu: float = 0.0
    waiting: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(self.cpu + other.cpu, self.waiting + other.waiting)

    def __sub__(self, other: Times) -> Times:
        return Times(self.cpu - other.cpu, self.waiting - other.waiting)


def is_engine(pid: int) -> bool:
    """Whether the process's title names an engine core or a worker."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"EngineCore" in title or b"Worker" in title


def role(pid: int, thread: int) -> str:
    side = "engine" if is_engine(pid) else "front end"
    if thread == pid:
        return f"{side}: main"
    return f"{side}: other threads"


def by_role(pids: list[int]) -> dict[str, Times]:
    """Times of all threads of these processes; threads that end meanwhile are left out."""
    found: dict[str, Times] = {}
    for pid in pids:
        try:
            threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        except OSError:
            continue
        for thread in threads:
            folder = Path(f"/proc/{pid}/task/{thread}")
            try:
                on, ready, _ = folder.joinpath("schedstat").read_text().split()
            except OSError:
                continue
            key = role(pid, thread)
            found[key] = found.get(key, Times()) + Times(int(on) / 1e9, int(ready) / 1e9)
    return found


def spent(pids: list[int], before: dict[str, Times]) -> dict[str, Times]:
    """Times since `before`, an earlier result of `by_role` for the same processes."""
    now = by_role(pids)
    return {name: now[name] - before.get(name, Times()) for name in now}
