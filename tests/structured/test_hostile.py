"""Constraints that would take for ever are refused, and others are served (checklist 115).

`HOSTILE` is refused before much is computed; `EXPENSIVE` runs into the limits of the child process.
All of them: make check-structured.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from galley.config.structured import structured_outputs_settings
from galley.errors import InvalidRequest
from galley.request import StructuredOutputsParams
from galley.structured.check import ConstraintChecker

pytestmark = pytest.mark.alone


def _nested(levels: int, schema: Any, around: Any) -> Any:
    for _ in range(levels):
        schema = around(schema)
    return schema


HOSTILE: dict[str, dict[str, Any]] = {
    "long regex": {"regex": "a" * 100_000},
    "deep regex": {"regex": "(" * 5_000 + ")" * 5_000},
    "lookahead bomb": {"regex": "(?!(a|b)*a(a|b){20})x*"},
    "huge repetition": {"regex": "a{1000000000}"},
    "10 MB schema": {"json": {"enum": ["x" * 100 + str(i) for i in range(100_000)]}},
    "deep text": {"json": '{"items":' * 100_000 + "{}" + "}" * 100_000},
    "deep object": {"json": _nested(200, {}, lambda s: {"items": s})},
    "itself": {"json": {"$ref": "#"}},
    "always itself": {
        "json": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    },
    "minItems": {"json": {"type": "array", "minItems": 10**9}},
    "minLength": {"json": {"type": "string", "minLength": 10**9}},
    "conditions": {
        "json": {
            "type": "object",
            "dependentRequired": {f"a{i}": [f"b{i}"] for i in range(40)},
        }
    },
    "choices of properties": {
        "json": {
            "type": "object",
            "properties": {str(i): {} for i in range(60)},
            "minProperties": 30,
            "additionalProperties": False,
        }
    },
    "long number": {"json": '{"type": "integer", "maximum": ' + "9" * 5_000 + "}"},
    "large step": {"json": {"type": "integer", "multipleOf": 999_983}},
    "not one of many": {"json": {"type": "string", "not": {"pattern": "(a|b)*a(a|b){20}"}}},
    "200,000 choices": {"choice": [f"choice {i}" for i in range(200_000)]},
    "a long choice": {"choice": ["x" * 100_000]},
    "deep tag": {
        "structural_tag": json.dumps(
            {"format": _nested(200, {}, lambda s: {"type": "sequence", "elements": [s]})}
        )
    },
    "white space": {"json_object": True, "whitespace_pattern": "( +)+x"},
}

EXPENSIVE: dict[str, dict[str, Any]] = {
    "giant grammar": {
        "grammar": "start: r0\n"
        + "\n".join(f'r{i}: r{i + 1} r{i + 1} | "a{i}"' for i in range(20_000))
        + '\nr20000: "x"'
    },
    "giant EBNF": {
        "grammar": "root ::= r0\n"
        + "\n".join(f'r{i} ::= r{i + 1} r{i + 1} | "a"' for i in range(20_000))
        + '\nr20000 ::= "x"'
    },
    "overlapping branches": {
        "json": {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {f"p{j}": {"type": "integer", "minimum": i} for j in range(20)},
                }
                for i in range(60)
            ]
        }
    },
    "many patterns": {
        "json": {
            "type": "object",
            "patternProperties": {
                f"a.*{i}.*b": {"type": "integer", "minimum": i} for i in range(60)
            },
        }
    },
    "pattern bombs": {
        "json": {
            "allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(60)]
        }
    },
    "a large document": {
        "json": {
            "type": "object",
            "properties": {f"property_{i}": {"type": "string"} for i in range(80_000)},
        }
    },
}

#: Look hostile, but need little.
HARMLESS: dict[str, dict[str, Any]] = {
    "nested repetition": {"regex": "((a{1,1000}){1,1000}){1,1000}"},
    "(a+)+": {"regex": "(a+)+b"},
    "alternatives": {"regex": "(a|aa)*b" * 100},
    "maxItems": {"json": {"type": "array", "maxItems": 10**12}},
    "maxLength": {"json": {"type": "string", "maxLength": 10**12}},
}


@pytest.fixture(scope="module")
def checker() -> ConstraintChecker:
    return ConstraintChecker(structured_outputs_settings({}))


def check_refusal(checker: ConstraintChecker, given: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as info:
        checker.check(StructuredOutputsParams(**given))
    assert info.value.status == 400
    assert info.value.field is not None
    assert info.value.field.startswith("structured_outputs.")
    assert len(info.value.message) < 1_000
    return info.value


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_are_refused(checker: ConstraintChecker, name: str) -> None:
    check_refusal(checker, HOSTILE[name])


def test_objects_too_deep_to_be_encoded_are_refused(checker: ConstraintChecker) -> None:
    refusal = check_refusal(checker, {"json": _nested(1_500, {}, lambda s: {"items": s})})
    assert "nested too deeply" in refusal.message


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_hostile_is_served(checker: ConstraintChecker, name: str) -> None:
    assert checker.check(StructuredOutputsParams(**HARMLESS[name])).text


def test_the_child_is_replaced_after_a_limit(checker: ConstraintChecker) -> None:
    refusal = check_refusal(checker, EXPENSIVE["giant grammar"])
    assert "too complex" in refusal.message
    assert checker.check(StructuredOutputsParams(regex="[a-f]+")).kind == "regex"
