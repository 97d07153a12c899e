"""The columns between scheduler and runner: bytes, tables kept by plans alone, drafts."""

from __future__ import annotations

import numpy as np

from galley.batch import (
    GroupSpec,
    LogprobColumns,
    NewRow,
    RequestTable,
    StepPlan,
    StepResult,
    decode_plan,
    decode_result,
    encode_plan,
    encode_result,
)
from galley.request import Failure, FailureKind, SamplingParams


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def new_row(slot: int, tokens: list[int], num_computed: int = 0) -> NewRow:
    return NewRow(
        slot=slot,
        handle=100 + slot,
        token_ids=i32(*tokens),
        num_prompt=len(tokens),
        num_computed=num_computed,
        params=SamplingParams(temperature=0.5, seed=3, stop_token_ids=[9]),
        eos_token_ids=[2],
        bad_words_token_ids=[[1, 2]],
    )


def plan(
    step: int, slots: list[int], num_new: list[int], num_sampled: list[int], **more
) -> StepPlan:
    return StepPlan(
        step=step,
        slots=i32(*slots),
        num_new=i32(*num_new),
        num_logits=i32(*num_sampled),
        num_sampled=i32(*num_sampled),
        **more,
    )


def assert_same(a: object, b: object) -> None:
    assert type(a) is type(b)
    for name in a.__slots__:
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            assert x.tolist() == y.tolist()
        elif isinstance(x, list) and x and isinstance(x[0], NewRow):
            for one, other in zip(x, y, strict=True):
                assert_same(one, other)
        elif isinstance(x, LogprobColumns):
            assert_same(x, y)
        else:
            assert x == y


def test_a_plan_survives_its_bytes() -> None:
    full = plan(
        7,
        [3, 1],
        [5, 1],
        [0, 1],
        new_rows=[new_row(3, [4, 5, 6, 7, 8])],
        freed_slots=i32(0, 2),
        block_groups=i32(0, 1),
        block_slots=i32(3, 3),
        block_indices=i32(0, 0),
        block_ids=i32(9, 10),
        draft_ids=i32(4, 5),
    )
    assert_same(decode_plan(encode_plan(full)), full)
    assert_same(decode_plan(encode_plan(plan(1, [], [], []))), plan(1, [], [], []))


def test_a_result_survives_its_bytes() -> None:
    columns = LogprobColumns(
        i32(0), i32(5), i32(1), i32(0, 2), i32(7, 8), np.array([-0.5, -2], np.float32)
    )
    full = StepResult(
        3, i32(1, 0), i32(7), logprobs=columns, errors={1: Failure("no", FailureKind.REQUEST)}
    )
    assert_same(decode_result(encode_result(full)), full)


def test_a_table_follows_plans_and_results() -> None:
    table = RequestTable(4, 16, [GroupSpec("full", 4, 8)])
    first = plan(
        1,
        [2, 0],
        [3, 2],
        [1, 0],
        new_rows=[new_row(2, [1, 2, 3]), new_row(0, [4, 5, 6, 7])],
        block_groups=i32(0, 0),
        block_slots=i32(2, 0),
        block_indices=i32(0, 0),
        block_ids=i32(5, 6),
    )
    table.apply_plan(first)
    table.apply_result(first, StepResult(1, i32(1, 0), i32(9)))
    assert table.num_tokens.tolist() == [4, 0, 4, 0]
    assert table.num_computed.tolist() == [2, 0, 3, 0]
    assert table.token_ids[2, :4].tolist() == [1, 2, 3, 9]
    assert table.block_tables[0][[2, 0], 0].tolist() == [5, 6]
    assert table.num_blocks.tolist() == [[1, 0, 1, 0]]
    table.apply_plan(plan(2, [], [], [], freed_slots=i32(2), new_rows=[new_row(2, [8], 0)]))
    assert table.num_tokens[2] == 1
    assert table.num_blocks[0, 2] == 0
    assert table.handles[2] == 102


def test_rejected_drafts_do_not_count_as_computed() -> None:
    """Behaviour 44, as far as the table goes."""
    table = RequestTable(3, 32, [GroupSpec("full", 4, 8)])
    rows = [new_row(s, [1, 2, 3, 4], num_computed=3) for s in range(3)]
    step = plan(
        1,
        [0, 1, 2],
        [4, 4, 1],
        [4, 4, 1],
        new_rows=rows,
        draft_ids=i32(10, 11, 12, 20, 21, 22),
    )
    table.apply_plan(step)
    # Row 0 accepts one draft of three, row 1 all, row 2 had none.
    tokens = i32(10, 50, 20, 21, 22, 60, 70)
    table.apply_result(step, StepResult(1, i32(2, 4, 1), tokens))
    assert table.num_tokens.tolist() == [6, 8, 5]
    assert table.num_computed.tolist() == [5, 7, 4]
    assert table.token_ids[0, 4:6].tolist() == [10, 50]
    assert table.token_ids[1, 4:8].tolist() == [20, 21, 22, 60]
    assert table.token_ids[2, 4:5].tolist() == [70]


def test_selecting_entries_of_ragged_logprobs() -> None:
    columns = LogprobColumns(
        rows=i32(0, 1, 1),
        positions=i32(4, 5, 6),
        ranks=i32(1, 2, 3),
        indptr=i32(0, 2, 2, 5),
        token_ids=i32(1, 2, 3, 4, 5),
        logprobs=np.arange(5, dtype=np.float32),
    )
    some = columns.select(np.array([True, False, True]))
    assert some.positions.tolist() == [4, 6]
    assert some.indptr.tolist() == [0, 2, 5]
    assert some.token_ids.tolist() == [1, 2, 3, 4, 5]
    last = columns.select(np.array([False, False, True]))
    assert (last.indptr.tolist(), last.token_ids.tolist()) == ([0, 3], [3, 4, 5])
    assert last.indptr.dtype == np.int32
    none = columns.select(np.zeros(3, np.bool_))
    assert (len(none.rows), none.indptr.tolist()) == (0, [0])
