"""Detects what the exit status of a child does not show: a hang, and a kill by the OOM killer."""

from __future__ import annotations

from pathlib import Path

#: Checks of a process within the time that it may hang, and the longest interval between two.
CHECKS = 4
MAX_INTERVAL = 1.0


class Watchdog:
    """Detects processes that make no progress, by their heartbeats.

    Time counts only while this process runs, too: of a pause of the whole machine (suspended, or a
    frozen container) at most two intervals are counted.

    Args:
        limit: seconds without a change of heartbeat; 0 or less: never.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.interval = min(limit / CHECKS, MAX_INTERVAL) if limit > 0 else float("inf")
        self._heartbeats: dict[int, int] = {}
        self._still: dict[int, float] = {}
        self._checked: dict[int, float] = {}

    def hangs(self, pid: int, heartbeat: int | None, now: float) -> bool:
        """Check one process; to be called every `interval` seconds.

        Args:
            heartbeat: a number that changes with progress, None while idle.
            now: `time.monotonic`.
        """
        if heartbeat is None or self._heartbeats.get(pid) != heartbeat:
            self.forget(pid)
            if heartbeat is not None:
                self._heartbeats[pid], self._still[pid], self._checked[pid] = heartbeat, 0.0, now
            return False
        self._still[pid] += min(now - self._checked[pid], 2 * self.interval)
        self._checked[pid] = now
        return self._still[pid] > self._limit

    def forget(self, pid: int) -> None:
        for table in (self._heartbeats, self._still, self._checked):
            table.pop(pid, None)


def memory_kills(
    cgroup: Path = Path("/sys/fs/cgroup/memory.events"), machine: Path = Path("/proc/vmstat")
) -> int:
    """Number of OOM kills in our control group or, if that is unknown, on the machine. Only its
    growth is meaningful.
    """
    for source in (cgroup, machine):
        try:
            words = source.read_text().split()
        except OSError:
            continue
        counts = dict(zip(words[::2], words[1::2], strict=False))
        if "oom_kill" in counts:
            return int(counts["oom_kill"])
    return 0
