"""One request, one answer, in random batches: `run` plays many more cases than these."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz.run import differences

BATCH = 15
#: Seeds that have failed once, beside those of the batches.
REGRESSIONS: list[int] = []
EVENTS = {"steps", "preemptions", "cached tokens", "evictions"}
EVENTS |= {"deaths", "kept blocks", "accepted drafts", "rejected drafts"}


@pytest.mark.parametrize("batch", range(4))
def test_random_cases(batch: int) -> None:
    events: Counter[str] = Counter()
    for seed in [*range(batch * BATCH, (batch + 1) * BATCH), *REGRESSIONS[batch::4]]:
        found, happened = differences(seed)
        assert found == []
        events += happened
    assert set(events) >= EVENTS, "not all has happened that could matter"
