"""Cores by affinity and by the quota of control groups, of either version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from galley.config.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def cores(tmp_path: Path, member: str, **files: str) -> int:
    """`files`: contents by path, with / as __ and . as _DOT_."""
    for name, text in files.items():
        path = tmp_path / "tree" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    membership = tmp_path / "cgroup"
    membership.write_text(member)
    return usable_cores(tmp_path / "tree", membership)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("400000 100000\n", 4),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("9900000 100000\n", 8),
        ("nonsense\n", 8),
        ("1 0\n", 8),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, text: str, expected: int) -> None:
    assert cores(tmp_path, "0::/\n", cpu_DOT_max=text) == expected


def test_the_tightest_of_the_groups_around_counts(tmp_path: Path) -> None:
    files = {
        "a__cpu_DOT_max": "300000 100000",
        "a__b__cpu_DOT_max": "600000 100000",
        "other__cpu_DOT_max": "100000 100000",
    }
    assert cores(tmp_path, "0::/a/b\n", **files) == 3


def test_a_name_from_outside_the_container(tmp_path: Path) -> None:
    member = "0::/kubepods/pod1/abc\n"
    assert cores(tmp_path, member, cpu_DOT_max="200000 100000") == 2


def test_version_1(tmp_path: Path) -> None:
    member = "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n"
    quota = {
        "cpu__docker__abc__cpu_DOT_cfs_quota_us": "500000\n",
        "cpu__docker__abc__cpu_DOT_cfs_period_us": "100000\n",
        "cpu__cpu_DOT_cfs_quota_us": "-1\n",
        "cpu__cpu_DOT_cfs_period_us": "100000\n",
    }
    assert cores(tmp_path, member, **quota) == 5


def test_no_control_groups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "nothing") == 8
