"""How the launcher notices what a death alone does not tell: a process that hangs, and a SIGKILL
that was the kernel's, for want of memory.
"""

from __future__ import annotations

from pathlib import Path

#: Looks at a process within the time that it may hang, and the longest pause between two.
LOOKS = 4
LONGEST_PAUSE = 1.0


class Watchdog:
    """Tells when processes have stopped getting on, from the heartbeats that they show.

    Time counts only while this process runs, too: of a pause in which all stood still (a suspended
    machine, a frozen container) at most two intervals are held against anyone.

    Args:
        limit: seconds without a change of heartbeat; 0 or less: never.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.interval = min(limit / LOOKS, LONGEST_PAUSE) if limit > 0 else float("inf")
        self._heartbeats: dict[int, int] = {}
        self._still: dict[int, float] = {}
        self._looked: dict[int, float] = {}

    def hangs(self, pid: int, heartbeat: int | None, now: float) -> bool:
        """Look at one process; to be called every `interval` seconds.

        Args:
            heartbeat: a number that changes while it gets on, None while it has nothing to do.
            now: `time.monotonic`.
        """
        if heartbeat is None or self._heartbeats.get(pid) != heartbeat:
            self.forget(pid)
            if heartbeat is not None:
                self._heartbeats[pid], self._still[pid], self._looked[pid] = heartbeat, 0.0, now
            return False
        self._still[pid] += min(now - self._looked[pid], 2 * self.interval)
        self._looked[pid] = now
        return self._still[pid] > self._limit

    def forget(self, pid: int) -> None:
        for seen in (self._heartbeats, self._still, self._looked):
            seen.pop(pid, None)


def memory_kills(
    cgroup: Path = Path("/sys/fs/cgroup/memory.events"), machine: Path = Path("/proc/vmstat")
) -> int:
    """How often the kernel has killed for want of memory, in our control group or, where that
    cannot be told, on the machine. Only its growth means anything.
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
