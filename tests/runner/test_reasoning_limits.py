"""Masks of limits on reasoning."""

from __future__ import annotations

import numpy as np
import pytest

from galley.request import ReasoningLimits, TokenMarker
from galley.runner.mask_rules.reasoning import ReasoningEnd
from galley.runner.mask_rules.rule import TokenSets

SETS = TokenSets(64)
PROMPT = [1, 8, 9]
START, END = TokenMarker.of_tokens((7,)), TokenMarker.of_tokens((8, 9))


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
    rule = ReasoningEnd(limits, frozenset({0}), SETS)
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


#: Spelt by 8 and 9, by 10 alone, and by 8 and 11, which goes on behind it.
SPELT = TokenMarker.of_steps((8, 9), 2, [(0, 8, 1), (1, 9, 2), (0, 10, 2), (1, 11, 3), (0, 12, 3)])


def test_a_marker_ends_reasoning_however_it_is_spelt() -> None:
    budget = ReasoningLimits(START, SPELT, True, 3)
    for spelling in ([8, 9], [10], [8, 11], [8, 8, 9], [12]):
        assert forced(budget, [2, *spelling, 3, 4, 5]) is None
    assert forced(budget, [2, 9, 8, 3]) == 8
    bound = ReasoningLimits(START, SPELT, True, must_end=True)
    assert allowed(bound, [2]) == [i for i in range(1, 64) if i != 12]
    assert allowed(bound, [2, 8]) == [i for i in range(1, 64) if i not in (11, 12)]


def test_parts_count_as_reasoning() -> None:
    """As the channels of gpt-oss: 7 … 6 is reasoning, and 8 9 begins the answer."""
    parts = (START, TokenMarker.of_tokens((6,)))
    limits = ReasoningLimits(START, END, True, 3, close=(6, 5, 8, 9), parts=parts)
    for output, want in (
        ([7, 2, 2], None),
        ([7, 2, 2, 2], 6),
        ([7, 2, 2, 2, 6], 5),
        ([7, 2, 2, 2, 6, 5], 8),
        ([7, 2, 2, 2, 6, 5, 8], 9),
        ([7, 2, 2, 2, 6, 5, 8, 9], None),
        ([7, 2, 2, 6, 3, 3, 3, 3], None),
        ([7, 2, 2, 6, 3, 7, 2], 6),
        ([3, 3, 3, 3, 3], None),
        ([8, 9, 7, 2, 2, 2, 2], None),
    ):
        assert forced(limits, output) == want, output


@pytest.mark.parametrize("drafts", [0, 3, 40])
def test_a_rule_that_is_asked_step_by_step_answers_as_one_that_is_new(drafts: int) -> None:
    """Also where drafts at the end are looked at and dropped again."""
    random = np.random.default_rng(drafts)
    limits = ReasoningLimits(START, SPELT, False, 30, must_end=True)
    output = [*random.integers(13, 60, 5), 7, *random.integers(13, 60, 90), 8, 9, 3]
    kept = ReasoningEnd(limits, frozenset({0}), SETS)
    for length in range(len(output) + 1):
        for more in (drafts, 0):
            tokens = np.array([*PROMPT, *output[:length], *random.integers(0, 60, more)], np.int32)
            new = ReasoningEnd(limits, frozenset({0}), SETS)
            for end in range(len(PROMPT) + length, len(tokens) + 1):
                mine, other = (r.allowed(tokens[:end], len(PROMPT)) for r in (kept, new))
                assert (mine is None) == (other is None)
                assert mine is None or np.array_equal(mine, other)
