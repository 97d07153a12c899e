"""Answers that repeat themselves end, if requested."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galley.errors import InvalidRequest
from galley.request import RepetitionDetectionParams, SamplingParams
from galley.scheduler.sequence import Sequence
from tests.scheduler.fakes import request


def sequence(min_tokens: int = 0, **numbers: int) -> Sequence:
    params = RepetitionDetectionParams(**numbers)
    made = request(1, [1], 100, repetition_detection=params, min_tokens=min_tokens)
    return Sequence(made, 1, 0.0, 1000, None)


def repeats(output: list[int], most: int, least: int, count: int) -> bool:
    """By the definition."""
    sizes = range(max(least, 1), most + 1)
    return any(
        len(output) >= size * count and output[-size * count :] == output[-size:] * count
        for size in sizes
    )


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=24),
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(2, 4),
)
def test_it_is_found_where_there_is_one(
    output: list[int], most: int, least: int, count: int
) -> None:
    if least > most:
        least = most
    seq = sequence(max_pattern_size=most, min_pattern_size=least, min_count=count)
    end = seq.ending(np.array([0, *output], np.int32))
    assert (end is not None) == repeats(output, most, least, count)


def test_not_before_min_tokens() -> None:
    seq = sequence(min_tokens=5, max_pattern_size=1, min_count=2)
    assert seq.ending(np.array([0, 3, 3, 3, 3], np.int32)) is None
    assert seq.ending(np.array([0, 3, 3, 3, 3, 3], np.int32)) is not None
    assert sequence(max_pattern_size=0).ending(np.array([0, *[3] * 9], np.int32)) is None


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_pattern_size": 3},
        {"max_pattern_size": 3, "min_count": 1},
        {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2},
        {"max_pattern_size": -1},
    ],
)
def test_numbers_that_make_no_sense(numbers: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match="repetition_detection"):
        SamplingParams(repetition_detection=RepetitionDetectionParams(**numbers))
    given_as_dict = {"max_pattern_size": 3, "min_count": 2}
    params = SamplingParams(repetition_detection=given_as_dict)
    assert params.repetition_detection == RepetitionDetectionParams(**given_as_dict)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
