"""Finished outputs are valid against the schema as it was given, or it is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator, validators

from galley.structured.schema import Refused, SchemaOptions, normalise
from tests.structured.corpus import Case, hand_written
from tests.structured.walks import Grammar

CASES = hand_written()


def check_walks(schema: Any, grammar: Grammar, seeds: range) -> int:
    """Validate the walks of some seeds; returns how many ended."""
    validator = validators.validator_for(schema, default=Draft202012Validator)
    validator = validator(schema, format_checker=validator.FORMAT_CHECKER)
    ended = 0
    for seed in seeds:
        text = grammar.walk(seed)
        if text is not None:
            ended += 1
            errors = [error.message for error in validator.iter_errors(json.loads(text))]
            assert not errors, (schema, text)
    return ended


@pytest.mark.parametrize("case", [c for c in CASES if not c.refused], ids=lambda case: case.name)
def test_what_a_schema_allows_is_valid(case: Case) -> None:
    grammar = Grammar.of_schema(normalise(case.schema))
    assert check_walks(case.schema, grammar, range(4)) > 0


@pytest.mark.parametrize("case", [c for c in CASES if c.refused], ids=lambda case: case.name)
def test_what_is_refused_is_named(case: Case) -> None:
    with pytest.raises(Refused) as info:
        normalise(case.schema)
    assert info.value.keyword == case.refused
    assert str(info.value).startswith(f"JSON schema: {case.refused} at #")


def test_most_schemas_are_accepted() -> None:
    valid = [case for case in CASES if not case.invalid]
    accepted = [case for case in valid if not case.refused]
    assert len(CASES) >= 300
    assert len(accepted) >= 0.95 * len(valid)


def test_a_schema_is_not_changed() -> None:
    for case in CASES:
        before = json.dumps(case.schema)
        try:
            normalise(case.schema)
        except Refused:
            pass
        assert json.dumps(case.schema) == before


def test_exact_cases() -> None:
    """Where a schema is kept exactly, each side of its border."""
    for schema, inside, outside in _BORDERS:
        grammar = Grammar.of_schema(normalise(schema))
        for value in inside:
            assert grammar.accepts(json.dumps(value, ensure_ascii=False)), (schema, value)
        for value in outside:
            assert not grammar.accepts(json.dumps(value, ensure_ascii=False)), (schema, value)


_AB = {"a": {"type": "integer"}, "b": {"type": "integer"}}
_BORDERS: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "string", "pattern": "^a|b$"}, ["a", "ax", "xb"], ["xax", ""]),
    ({"type": "string", "pattern": "^(?!foo)[a-z]+$"}, ["fo", "bar"], ["foo", "foobar"]),
    ({"type": "string", "not": {"pattern": "x"}}, ["", "abc"], ["x", "axb"]),
    ({"type": "string", "minLength": 2, "pattern": "^a*$"}, ["aa"], ["a", "ab"]),
    ({"type": "integer", "multipleOf": 1.5}, [3, -6, 0], [1, 2]),
    ({"type": "integer", "not": {"const": 3}}, [2, 4], [3]),
    ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, [[], [2, 1]], [[1, 1]]),
    (
        {"type": "object", "properties": _AB, "minProperties": 1, "additionalProperties": False},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}],
        [{}],
    ),
    (
        {"type": "object", "properties": _AB, "maxProperties": 1, "additionalProperties": False},
        [{}, {"a": 1}, {"b": 1}],
        [{"a": 1, "b": 2}],
    ),
    (
        {"type": "object", "properties": _AB, "dependentRequired": {"a": ["b"]}},
        [{}, {"b": 1}, {"a": 1, "b": 2}],
        [{"a": 1}],
    ),
    (
        {"type": "object", "properties": _AB, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 2}],
    ),
    (
        {"if": {"type": "integer"}, "then": {"minimum": 3}, "else": {"const": "x"}},
        [3, "x"],
        [2, "y", None],
    ),
    (
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 5}}},
        [{"ab": 5}, {"a": 1}, {"b": 7}, {"c": "x"}],
        [{"ab": 1}, {"a": "x"}, {"b": 1}],
    ),
    (
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}},
        [{}, {"ab": 1}],
        [{"A": 1}],
    ),
]


def test_an_escaped_name_is_no_additional_property() -> None:
    """`"\\u0061"` is the name a, so its value must be an integer."""
    grammar = Grammar.of_schema(
        normalise({"type": "object", "properties": {"a": {"type": "null"}}})
    )
    assert grammar.accepts('{"b":1}')
    assert not grammar.accepts('{"\\u0061":1}')


def test_a_name_that_dialects_read_differently_is_no_additional_property() -> None:
    """`.` matches U+2028 in Python, and not in ECMAScript."""
    schema = {"type": "object", "patternProperties": {"^x.*$": {"type": "integer"}}}
    grammar = Grammar.of_schema(normalise(schema))
    assert grammar.accepts('{"xa":1,"a":"b"}')
    assert not grammar.accepts('{"xa":"b"}')
    assert not grammar.accepts('{"x\u2028":"b"}')


def test_options_of_white_space() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
    flexible = Grammar.of_schema(normalise(schema))
    compact = Grammar.of_schema(normalise(schema, SchemaOptions(any_whitespace=False)))
    narrow = Grammar.of_schema(normalise(schema, SchemaOptions(whitespace_pattern=" ?")))
    assert [g.accepts('{"a":null}') for g in (flexible, compact, narrow)] == [True, True, True]
    assert [g.accepts('{"a": null}') for g in (flexible, compact, narrow)] == [True, False, True]
    assert [g.accepts('{"a":\nnull}') for g in (flexible, compact, narrow)] == [True, False, False]


def test_additional_properties_can_be_switched_off() -> None:
    options = SchemaOptions(additional_properties=False)
    closed = Grammar.of_schema(normalise({"type": "object", "properties": _AB}, options))
    assert closed.accepts('{"a":1}')
    assert not closed.accepts('{"c":1}')
    schema = {"type": "object", "properties": _AB, "additionalProperties": {"type": "null"}}
    assert Grammar.of_schema(normalise(schema, options)).accepts('{"c":null}')
