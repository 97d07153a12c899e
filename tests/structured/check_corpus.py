"""The whole corpus: 100 % of finished outputs validate, and at least so many schemas are accepted.

    make check-structured

Real schemas come from packages that the tests install. A schema counts as accepted if it is
normalised and compiled within the limits that a server applies.
"""

from __future__ import annotations

import warnings
from functools import cache, lru_cache

import pytest

from galley.config.structured import structured_outputs_settings
from galley.errors import InvalidRequest
from galley.request import StructuredOutputsParams
from galley.structured.check import ConstraintChecker
from tests.structured.corpus import Case, hand_written, real
from tests.structured.schema.test_corpus import check_walks
from tests.structured.walks import Grammar

SEEDS = range(25)
CASES = [case for case in hand_written() if not case.refused]
REAL = real()


@lru_cache(maxsize=1)
def _checker() -> ConstraintChecker:
    return ConstraintChecker(structured_outputs_settings({}))


@cache
def _normalised(index: int) -> str | InvalidRequest:
    """The schema that a server accepts, or its refusal."""
    try:
        return _checker().check(StructuredOutputsParams(json=REAL[index].schema)).text
    except InvalidRequest as error:
        return error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hand_written_schemas(case: Case) -> None:
    constraint = _checker().check(StructuredOutputsParams(json=_as_object(case)))
    assert check_walks(case.schema, Grammar.of_schema(constraint.text), SEEDS) > 0


def _as_object(case: Case) -> dict[str, object]:
    return case.schema if isinstance(case.schema, dict) else {"allOf": [case.schema]}


@pytest.mark.parametrize("index", range(len(REAL)), ids=lambda index: REAL[index].name)
def test_real_schemas(index: int) -> None:
    result = _normalised(index)
    if isinstance(result, InvalidRequest):
        assert "structured_outputs" in str(result) or " at #" in str(result)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        check_walks(REAL[index].schema, Grammar.of_schema(result), SEEDS)


def test_enough_real_schemas_are_accepted() -> None:
    refused = [
        f"{REAL[i].name}: {result}"
        for i in range(len(REAL))
        if isinstance(result := _normalised(i), InvalidRequest)
    ]
    print(f"{len(REAL) - len(refused)} of {len(REAL)} accepted; refused:", *refused, sep="\n")
    assert len(REAL) >= 250
    assert len(refused) <= 0.15 * len(REAL)
