"""Requests of a crashed engine's step are retried one at a time, up to where each was."""

from __future__ import annotations

from galley.frontend.crash_search import CrashSearch


def test_the_candidate_of_the_second_crash_is_the_culprit() -> None:
    search = CrashSearch()
    assert search.crashed({1: 10, 2: 10, 3: 10}) is None
    live = {1: 9, 2: 9, 3: 9, 4: 5}
    assert search.next_candidate(live) == 1
    assert [h for h in live if search.holds(h)] == [2, 3]
    assert search.crashed({1: 9, 4: 5}) == 1
    assert search.next_candidate({2: 9, 3: 9, 4: 5}) == 4, "those in the same step are suspects now"


def test_a_candidate_is_cleared_past_the_crash_not_at_what_the_client_had() -> None:
    search = CrashSearch()
    search.crashed({1: 20, 2: 20})
    assert search.next_candidate({1: 15, 2: 15}) == 1
    for length in range(15, 21):
        assert search.next_candidate({1: length, 2: 15}) is None
    assert search.next_candidate({1: 21, 2: 15}) == 2


def test_of_an_unknown_length_it_must_gain_a_token() -> None:
    search = CrashSearch()
    search.crashed({1: 0, 2: 0})
    assert search.next_candidate({1: 5, 2: 5}) == 1
    assert search.next_candidate({1: 5, 2: 5}) is None
    assert search.next_candidate({1: 6, 2: 5}) == 2
    assert search.active
    assert search.next_candidate({1: 7}) is None, "it has ended: no more suspects"
    assert not search.active


def test_after_a_kill_from_outside_the_candidate_is_sent_again() -> None:
    search = CrashSearch()
    search.crashed({1: 20, 2: 20})
    search.next_candidate({1: 15, 2: 15})
    search.killed()
    assert search.candidate is None
    assert search.next_candidate({1: 18, 2: 15}) == 1
    assert search.next_candidate({1: 20, 2: 15}) is None
    assert search.crashed({1: 20}) == 1


def test_without_suspects_there_is_no_candidate() -> None:
    search = CrashSearch()
    assert search.crashed({}) is None
    search.killed()
    assert not search.active
    assert search.next_candidate({1: 5}) is None
