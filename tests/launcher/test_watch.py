"""Engines that hang, and the cause of a SIGKILL."""

from __future__ import annotations

from pathlib import Path

from galley.launcher.watch import Watchdog, memory_kills


def looks(dog: Watchdog, heartbeats: list[int | None], step: float = 1.0) -> list[bool]:
    return [dog.hangs(7, heartbeat, i * step) for i, heartbeat in enumerate(heartbeats)]


def test_a_heartbeat_that_does_not_change_is_a_hang() -> None:
    assert looks(Watchdog(3.0), [5, 5, 5, 5, 5]) == [False, False, False, False, True]


def test_progress_and_idleness_restart_the_clock() -> None:
    assert not any(looks(Watchdog(3.0), [1, 1, 1, 2, 2, 2, 3, 3, 3]))
    assert not any(looks(Watchdog(3.0), [1, 1, 1, None, 1, 1, 1, None, None, None, None]))


def test_processes_are_independent() -> None:
    dog = Watchdog(3.0)
    for at in range(4):
        assert not dog.hangs(1, 5, float(at))
        assert not dog.hangs(2, at, float(at))
    assert dog.hangs(1, 5, 4.0)
    assert not dog.hangs(2, 4, 4.0)
    dog.forget(1)
    assert not dog.hangs(1, 5, 5.0)


def test_a_pause_of_the_whole_machine_is_not_a_hang() -> None:
    dog = Watchdog(60.0)
    assert dog.interval == 1.0
    assert not dog.hangs(1, 5, 0.0)
    assert not dog.hangs(1, 5, 10_000.0)
    assert not dog.hangs(1, 6, 10_001.0)


def test_the_interval_follows_the_limit() -> None:
    assert Watchdog(0.4).interval == 0.1
    for limit in (0.0, float("inf")):
        dog = Watchdog(limit)
        assert dog.interval == (float("inf") if not limit else 1.0)


def test_memory_kills_are_counted_where_they_can_be(tmp_path: Path) -> None:
    cgroup, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    assert memory_kills(cgroup, machine) == 0
    machine.write_text("nr_free_pages 7\noom_kill 3\n")
    assert memory_kills(cgroup, machine) == 3
    cgroup.write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n")
    assert memory_kills(cgroup, machine) == 1
    assert memory_kills() >= 0
