"""One request, one answer, in random batches: `run` plays many more cases than these."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz.cases import DRAFTERS
from tests.fuzz.run import differences

BATCH = 12
#: Seeds that have failed once, beside those of the batches.
REGRESSIONS: list[int] = []
EVENTS = {"steps", "preemptions", "cached tokens", "evictions", "deaths", "kept blocks"}
#: Of all batches.
ALL: Counter[str] = Counter()


@pytest.mark.parametrize("batch", range(3))
def test_random_cases(batch: int) -> None:
    events: Counter[str] = Counter()
    for seed in [*range(batch * BATCH, (batch + 1) * BATCH), *REGRESSIONS[batch::3]]:
        found, happened = differences(seed)
        assert found == []
        events += happened
    assert set(events) >= EVENTS, "not all has happened that could matter"
    ALL.update(events)


def test_drafts_of_every_method_were_accepted_and_rejected() -> None:
    """Heads are random and seldom right: tests/spec has some that are."""
    if not ALL:
        pytest.skip("no batch was run")
    lookups = ("ngram", "suffix")
    for method in (*lookups, *DRAFTERS):
        assert ALL[f"rejected {method}"] > 0, method
    assert all(ALL[f"accepted {method}"] for method in lookups)
    assert any(ALL[f"accepted {method}"] for method in DRAFTERS)
