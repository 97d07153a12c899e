"""The live view says what scheduler and cache say."""

from __future__ import annotations

import msgspec
import numpy as np

from galley.engine.core import EngineCore
from galley.engine.live_view import MAX_STEPS, LiveView
from tests.scheduler.fakes import make_core, request, run

PREFIX = list(range(40))


def look(core: EngineCore, epoch: int = 0, step: int = -1) -> LiveView:
    """As a client gets it."""
    view = msgspec.msgpack.encode(core.live_view(epoch, step))
    return msgspec.msgpack.decode(view, type=LiveView)


def test_steps_rows_and_events() -> None:
    core = make_core(budget=40)
    core.add([request(1, list(range(50)), max_tokens=3), request(2, [2] * 10, max_tokens=3)])
    run(core)
    view = look(core)
    assert view.columns["step"] == [1, 2, 3, 4]
    assert view.columns["num_tokens"] == [40, 20, 2, 2]
    assert view.columns["num_output"] == [0, 2, 2, 2]
    assert view.rows.counts == [1, 2, 2, 2]
    assert view.rows.handles == [1, 1, 2, 1, 2, 1, 2]
    assert view.rows.tokens == [40, 10, 10, 1, 1, 1, 1]
    assert view.rows.sampled == [0, 1, 1, 1, 1, 1, 1]
    assert [start[:3] for start in view.rows.started] == [(1, 1, 0), (2, 2, 0)]
    assert view.rows.ended == [(4, 1, "length"), (4, 2, "length")]
    assert view.begin == sorted(view.begin)
    assert abs(view.begin[-1] - view.now) < 60
    assert not view.running


def test_blocks_are_those_of_the_books() -> None:
    core = make_core(max_num_seqs=3)
    core.add([request(1, PREFIX, max_tokens=9)])
    core.step()
    core.add(request(h, [*PREFIX, h], max_tokens=9) for h in (2, 3, 4))
    core.scheduler.add(request(5, PREFIX), parked="grammar")
    core.step()
    view, table, pool = look(core), core.scheduler.table, core.scheduler.kv.pool
    assert [one.handle for one in view.running] == [1, 2, 3]
    refs = np.zeros(pool.num_blocks, int)
    for one in view.running:
        [blocks] = one.blocks
        assert blocks == table.block_tables[0, one.slot, : table.num_blocks[0, one.slot]].tolist()
        assert one.num_tokens == table.num_tokens[one.slot]
        refs[blocks] += 1
    assert refs.tolist() == pool.refs
    assert refs.max() == 3, "the prefix is shared"
    assert view.blocks_used == pool.num_used
    assert [(one.handle, one.reason) for one in view.waiting] == [(4, "capacity"), (5, "grammar")]
    assert view.num_waiting == {"capacity": 1, "grammar": 1}
    assert view.counters["prefix_hits"] == core.counters.prefix_hits > 0
    core.scheduler.unpark(5)
    run(core)
    bits = np.unpackbits(np.frombuffer(look(core).cached, np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == sorted(pool.cached)


def test_a_client_gets_what_it_has_not_seen() -> None:
    core = make_core()
    core.add([request(1, [1], max_tokens=6)])
    run(core)
    assert look(core, 0, 4).columns["step"] == [5, 6]
    assert look(core, 0, 6).columns["step"] == []
    # Of another incarnation, and from the future.
    for epoch, step in ((3, 4), (0, 99)):
        assert len(look(core, epoch, step).columns["step"]) == 6
    while core.trace.last < MAX_STEPS + 10:
        core.add([request(core.trace.last + 2, [1], max_tokens=200)])
        run(core)
    newest = range(core.trace.last - MAX_STEPS + 1, core.trace.last + 1)
    assert look(core, 0, 4).columns["step"] == list(newest)
