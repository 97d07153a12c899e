"""Pauses and sleep of a core over an executor that computes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from galley.engine.core import EngineCore
from galley.engine.pausing import belongs
from galley.errors import InvalidRequest
from galley.request import FinishReason
from tests.scheduler.fakes import make_core, request


@pytest.fixture
def core() -> EngineCore:
    core = make_core(budget=64)
    core.add([request(1, [1] * 20, max_tokens=5), request(2, [2] * 20, max_tokens=5)])
    core.step()
    return core


def ends(core: EngineCore) -> dict[int, FinishReason]:
    """Take all steps that there are; handle → reason of its end."""
    found = {}
    for _ in range(100):
        if not core.has_work:
            return found
        for _, outputs in core.step():
            found.update({f.handle: FinishReason(f.reason) for f in outputs.finished})
        core.check_integrity()
    raise AssertionError("there is always something to do")


def calls(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls to the workers from now on."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(core.executor, "rpc", lambda *words: seen.append(words) or [None])
    return seen


def test_kept_requests_continue_and_new_ones_are_held(core: EngineCore) -> None:
    core.pausing.pause("keep")
    core.add([request(3, [3] * 8, max_tokens=2)])
    assert not core.has_work
    assert core.pausing.is_paused()
    stats = core.stats()
    assert stats.num_waiting == 3, "the running were put back, so that the cache can be forgotten"
    core.pausing.resume()
    assert ends(core) == dict.fromkeys((1, 2, 3), FinishReason.LENGTH)


def test_a_draining_engine_admits_nothing(core: EngineCore) -> None:
    core.pausing.pause("wait")
    core.add([request(3, [3] * 8, max_tokens=2)])
    assert not core.pausing.drained()
    assert set(ends(core)) == {1, 2}
    assert core.pausing.drained()
    core.pausing.resume()
    assert set(ends(core)) == {3}


def test_an_aborting_pause_sends_an_end_to_every_client(core: EngineCore) -> None:
    core.add([request(7, [7] * 8, max_tokens=2, client_index=1)])
    core.pausing.pause("abort")
    told = core.step()
    assert {client: {f.handle for f in outputs.finished} for client, outputs in told} == {
        0: {1, 2},
        1: {7},
    }
    assert not core.has_work
    core.check_integrity()


def test_held_requests_can_be_aborted(core: EngineCore) -> None:
    core.pausing.pause("keep")
    core.add([request(3, [3] * 8, max_tokens=2), request(4, [4] * 8, max_tokens=2)])
    core.abort([3])
    assert ends(core) == {3: FinishReason.ABORT}
    core.pausing.abort_all(["r4"])
    core.pausing.resume()
    reasons = ends(core)
    assert reasons.pop(4) == FinishReason.ABORT
    assert reasons == dict.fromkeys((1, 2), FinishReason.LENGTH)


def test_sleep_needs_a_drained_pause(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(core, monkeypatch)
    for sleep in (core.pausing.sleep, core.pausing.release_kv_cache_memory):
        with pytest.raises(InvalidRequest, match="pause"):
            sleep()
    core.pausing.pause("wait")
    with pytest.raises(InvalidRequest, match="still being computed"):
        core.pausing.sleep()
    assert seen == []
    ends(core)
    core.pausing.sleep(2)
    assert seen == [("release_memory", True)]
    with pytest.raises(InvalidRequest, match="asleep"):
        core.pausing.resume()
    assert core.pausing.wake_up(["kv_cache"]) is False
    assert core.pausing.sleep_level == 2
    assert core.pausing.wake_up(["weights"]) is True
    assert seen == [("release_memory", True), ("restore_memory",)]
    assert core.pausing.sleep_level is None


def test_a_sleep_can_be_deepened(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(core, monkeypatch)
    core.pausing.pause("keep")
    core.pausing.sleep(1)
    core.pausing.sleep(2)
    assert core.pausing.wake_up() is True
    assert seen == [("release_memory", False), ("release_memory", True), ("restore_memory",)]
    assert ends(core) == dict.fromkeys((1, 2), FinishReason.LENGTH)


def test_a_lower_level_does_not_end_a_deeper_sleep(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are gone, whatever level is named afterwards."""
    seen = calls(core, monkeypatch)
    core.pausing.pause("keep")
    core.pausing.sleep(2)
    core.pausing.sleep(1)
    core.pausing.sleep(0)
    assert core.pausing.sleep_level == 2
    assert core.pausing.wake_up(["weights"]) is False
    assert seen[-1] == ("restore_memory",)
    assert core.pausing.wake_up(["kv_cache"]) is True
    assert seen.count(("restore_memory",)) == 1
    assert ends(core) == dict.fromkeys((1, 2), FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ("chatcmpl-1a", "chatcmpl-1a", True),
        ("2_chatcmpl-1a", "chatcmpl-1a", True),
        ("0_cmpl-1a-3", "cmpl-1a", True),
        ("cmpl-1a-3", "cmpl-1a-3", True),
        ("cmpl-1a-3", "cmpl-1a-2", False),
        ("my_id", "id", False),
        ("cmpl-1a-b", "cmpl-1a", False),
    ],
)
def test_ids(own: str, asked: str, expected: bool) -> None:
    named = request(1, [1])
    named.request_id = own
    assert belongs(named, [asked]) is expected
