"""Acceptance in the results of `galley bench serve`. Checklist 123."""

from __future__ import annotations

from galley.cli.bench.acceptance import Drafted, acceptance, lines


def test_rate_length_and_places_of_a_run() -> None:
    before = Drafted(10, 30, 12, [8.0, 3.0, 1.0])
    after = Drafted(30, 90, 45, [24.0, 13.0, 8.0])
    result = acceptance(before, after)
    assert result["spec_decode_acceptance_rate"] == 100 * 33 / 60
    assert result["spec_decode_acceptance_length"] == 1 + 33 / 20
    assert result["spec_decode_per_position_acceptance_rates"] == [16 / 20, 10 / 20, 7 / 20]
    assert ("Tokens per draft and step:", "2.65") in lines(result)


def test_without_drafts_nothing_is_reported() -> None:
    same = Drafted(10, 30, 12, [8.0, 3.0, 1.0])
    assert acceptance(None, None) == acceptance(same, same) == {}
    assert lines({}) == []
