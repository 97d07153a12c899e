"""The engine's counters over several clients: each growth is told once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from galley.engine.outputs import Shares
from galley.messages import Stats

COUNTERS = ("num_preemptions", "prefix_queries", "prefix_hits", "num_steps")


def values(stats: Stats) -> list[int]:
    return [getattr(stats, name) for name in COUNTERS]


@given(st.lists(st.tuples(st.sets(st.integers(0, 3), min_size=1), st.integers(0, 5))))
def test_parts_add_up_to_the_whole(steps: list[tuple[set[int], int]]) -> None:
    shares = Shares()
    whole = Stats(num_running=7)
    last: dict[int, list[int]] = {}
    for number, (clients, grown) in enumerate(steps, 1):
        whole = Stats(
            num_running=7,
            num_preemptions=whole.num_preemptions + grown,
            prefix_queries=whole.prefix_queries + 2 * grown,
            prefix_hits=whole.prefix_hits + grown // 2,
            num_steps=number,
            block_times=[b"told once"],
        )
        shares.grant(min(clients), whole)
        advanced = []
        for client in sorted(clients):
            part = shares.part(client, whole, min(clients))
            assert part.num_running == 7
            assert bool(part.block_times) == (client == min(clients))
            before = last.get(client, [0, 0, 0, 0])
            assert all(new >= old for new, old in zip(values(part), before, strict=True))
            advanced += [client] * (part.num_steps - before[3])
            last[client] = values(part)
        # A step is counted by exactly one of those who hear of it.
        assert advanced == [min(clients)]
        assert [sum(column) for column in zip(*last.values(), strict=True)] == values(whole)


def test_one_client_gets_the_whole_as_it_is() -> None:
    shares, stats = Shares(), Stats(num_steps=3, prefix_hits=5)
    shares.grant(2, stats)
    assert shares.part(2, stats, 2) is stats
