"""Number of cores that this process may use: by affinity, and by the CPU quota of its cgroups."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int:
    """Number of usable cores, at least 1. A quota of 2.5 cores counts as two: with a third thread
    all of them would wait for each other at the end of every quota period.

    Args:
        root, membership: mount point of the control groups, and file that lists ours.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for quota in _quotas(root, membership):
        cores = min(cores, max(int(quota), 1))
    return cores


def _quotas(root: Path, membership: Path) -> list[float]:
    """The quotas, in cores, of our control groups and their ancestors."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has one unnamed tree, version 1 one per controller. In a container our group
        # is often mounted as the root, whatever its name is outside.
        base = root / "cpu" if controllers else root
        group = base / path.strip("/")
        for folder in (group, *group.parents):
            if folder == base or base in folder.parents:
                quota = _quota_of(folder)
                if quota is not None:
                    quotas.append(quota)
    return quotas


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
        return None if limit in ("max", "-1") else float(limit) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
