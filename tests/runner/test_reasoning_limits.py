"""Masks of limits on reasoning."""

from __future__ import annotations

import numpy as np
import pytest

from galley.request import ReasoningLimits
from galley.runner.mask_rules.reasoning import ReasoningEnd
from galley.runner.mask_rules.rule import TokenSets

SETS = TokenSets(64)
PROMPT = [1, 8, 9]
START, END = (7,), (8, 9)


def forced(limits: ReasoningLimits, output: list[int]) -> int | None:
    """The only token that may follow; None: any."""
    found = allowed(limits, output)
    if found is None:
        return None
    [only] = found
    return only


def allowed(limits: ReasoningLimits, output: list[int]) -> list[int] | None:
    """The tokens that may follow; None: any. Token 0 is the stop token."""
    tokens = np.array(PROMPT + output, np.int32)
    rule = ReasoningEnd(limits, SETS.all_but([0]), SETS)
    words = rule.allowed(tokens, len(PROMPT))
    if words is None:
        return None
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


@pytest.mark.parametrize(
    ("output", "want"),
    [
        ([], None),
        ([2, 3], None),
        ([2, 3, 4], 8),
        ([2, 3, 4, 8], 9),
        ([2, 3, 8], 9),
        ([2, 3, 4, 8, 9], None),
        ([2, 8, 9, 3, 4, 5], None),
        ([2, 3, 4, 8, 5], 8),
    ],
)
def test_reasoning_that_the_prompt_has_begun_ends_after_so_many_tokens(
    output: list[int], want: int | None
) -> None:
    assert forced(ReasoningLimits(START, END, True, 3), output) == want


@pytest.mark.parametrize(
    ("output", "want"),
    [([2, 3, 4, 5, 6], None), ([7, 2, 3], None), ([7, 2, 3, 4], 8), ([2, 7, 2, 3, 4, 8], 9)],
)
def test_reasoning_that_the_model_begins_counts_from_there(
    output: list[int], want: int | None
) -> None:
    assert forced(ReasoningLimits(START, END, False, 3), output) == want


def test_no_reasoning_at_all() -> None:
    assert forced(ReasoningLimits(START, END, True, 0), []) == 8
    assert forced(ReasoningLimits(START, END, False, 0), []) is None


def test_an_answer_that_must_leave_its_reasoning_does_not_stop_inside() -> None:
    limits = ReasoningLimits(START, END, begun=True, must_end=True)
    assert allowed(limits, [2, 3]) == list(range(1, 64))
    assert allowed(limits, [2, 8, 9]) is None
    assert forced(ReasoningLimits(START, END, True, 2, must_end=True), [2, 3]) == 8
