"""Requests of a crashed engine's step are retried one at a time, up to where each was."""

from __future__ import annotations

from galley.frontend.probation import Probation


def test_the_one_on_trial_in_the_second_crash_is_guilty() -> None:
    probation = Probation()
    assert probation.crashed({1: 10, 2: 10, 3: 10}) is None
    live = {1: 9, 2: 9, 3: 9, 4: 5}
    assert probation.next_trial(live) == 1
    assert [h for h in live if probation.holds(h)] == [2, 3]
    assert probation.crashed({1: 9, 4: 5}) == 1
    assert probation.next_trial({2: 9, 3: 9, 4: 5}) == 4, "those in the same step are suspects now"


def test_a_trial_ends_past_the_crash_not_at_what_the_client_had() -> None:
    probation = Probation()
    probation.crashed({1: 20, 2: 20})
    assert probation.next_trial({1: 15, 2: 15}) == 1
    for length in range(15, 21):
        assert probation.next_trial({1: length, 2: 15}) is None
    assert probation.next_trial({1: 21, 2: 15}) == 2


def test_of_an_unknown_length_it_must_gain_a_token() -> None:
    probation = Probation()
    probation.crashed({1: 0, 2: 0})
    assert probation.next_trial({1: 5, 2: 5}) == 1
    assert probation.next_trial({1: 5, 2: 5}) is None
    assert probation.next_trial({1: 6, 2: 5}) == 2
    assert probation.active
    assert probation.next_trial({1: 7}) is None, "it has ended: no more suspects"
    assert not probation.active


def test_a_kill_from_outside_starts_the_trial_over() -> None:
    probation = Probation()
    probation.crashed({1: 20, 2: 20})
    probation.next_trial({1: 15, 2: 15})
    probation.killed()
    assert probation.on_trial is None
    assert probation.next_trial({1: 18, 2: 15}) == 1
    assert probation.next_trial({1: 20, 2: 15}) is None
    assert probation.crashed({1: 20}) == 1


def test_without_suspects_there_is_no_trial() -> None:
    probation = Probation()
    assert probation.crashed({}) is None
    probation.killed()
    assert not probation.active
    assert probation.next_trial({1: 5}) is None
