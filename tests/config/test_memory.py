"""How much memory there is: machines and control groups of both versions, as files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from galley.config.memory import MachineMemory, Memory

KIB, MIB = 1024, 2**20
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n"
STATUS = "Name:\tpython\nRssAnon:\t 80 kB\nRssFile:\t 50 kB\nRssShmem:\t 10 kB\n"


def machine(root: Path, files: dict[str, str]) -> MachineMemory:
    """A machine of which these files are all that there is."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return MachineMemory(root)


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    """Mapped file pages could be reclaimed, but are in use: they are not available."""
    found = machine(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/status": STATUS})
    assert found.read() == Memory(1000 * KIB, 550 * KIB)
    (tmp_path / "proc/meminfo").write_text(MEMINFO.replace("600", "  7"))
    assert found.read() == Memory(1000 * KIB, 0)


V2 = {"memory.max": "400000\n", "memory.current": "300000\n"}
V1 = {"memory.limit_in_bytes": "400000\n", "memory.usage_in_bytes": "300000\n"}
HUGE = {"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "300000\n"}


@pytest.mark.parametrize(
    ("cgroup", "folder", "files", "stat", "expected"),
    [
        ("0::/\n", "", V2, "inactive_file 5000\n", (400_000, 105_000)),
        ("0::/a/b\n", "a/b", V2, "inactive_file 5000\n", (400_000, 105_000)),
        # Of a container, whose path outside of it means nothing here.
        ("0::/kube/pod7\n", "", V2, "", (400_000, 100_000)),
        ("0::/\n", "", {**V2, "memory.max": "max\n"}, "", (1000 * KIB, 600 * KIB)),
        (
            "3:cpu:/\n4:memory:/x\n0::/\n",
            "memory/x",
            V1,
            "total_inactive_file 9\n",
            (400_000, 100_009),
        ),
        ("4:memory,hugetlb:/host/x\n", "memory", V1, "", (400_000, 100_000)),
        ("4:memory:/\n", "memory", HUGE, "", (1000 * KIB, 600 * KIB)),
    ],
)
def test_the_limit_of_a_control_group(
    tmp_path: Path,
    cgroup: str,
    folder: str,
    files: dict[str, str],
    stat: str,
    expected: tuple[int, int],
) -> None:
    here = f"sys/fs/cgroup/{folder}"
    there = {f"{here}/{name}": text for name, text in {**files, "memory.stat": stat}.items()}
    given = {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **there}
    assert machine(tmp_path, given).read() == Memory(*expected)


def test_the_groups_above_count_too(tmp_path: Path) -> None:
    found = machine(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/memory.current": "1\n",
            "sys/fs/cgroup/pod/memory.max": "200000\n",
            "sys/fs/cgroup/pod/memory.current": "199000\n",
        },
    )
    assert found.read() == Memory(200_000, 1000)
    (tmp_path / "sys/fs/cgroup/pod/memory.current").write_text("201000\n")
    assert found.read() == Memory(200_000, 0)


def test_stalls_are_those_of_the_group_or_the_machine(tmp_path: Path) -> None:
    text = "some avg10=40.00 avg60=9 avg300=9 total=9\nfull avg10=12.50 avg60=9 avg300=9 total=9\n"
    files = {"proc/meminfo": MEMINFO, "proc/pressure/memory": text}
    assert machine(tmp_path / "a", files).read().stalled == 0.125
    group = {
        "proc/self/cgroup": "0::/x\n",
        "sys/fs/cgroup/x/memory.max": "max\n",
        "sys/fs/cgroup/x/memory.pressure": text.replace("12.50", "0.00"),
    }
    assert machine(tmp_path / "b", files | group).read().stalled == 0.0


def test_this_machine() -> None:
    memory = MachineMemory().read()
    assert 64 * MIB < memory.available < memory.total
    assert 0.0 <= memory.stalled <= 1.0
