"""Many small streams over two front ends: a short piece of `make front-ends`."""

from __future__ import annotations

from benchmarks.front_ends import measure, table


def test_many_small_streams() -> None:
    """Checklist 134, 147: all streams are complete, and the work is divided among the servers."""
    best = measure([1, 2], streams=32, tokens=8, rounds=1)
    assert best.keys() == {1, 2}
    for found in best.values():
        assert found.tokens_per_second > 0
        assert found.front > 0
        assert found.engine > 0
    assert len(table(best).splitlines()) == 4
