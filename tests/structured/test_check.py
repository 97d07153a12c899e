"""Parameters become constraints, or are refused with the field at fault."""

from __future__ import annotations

from typing import Any

import pytest

from galley.config.structured import structured_outputs_settings
from galley.errors import ConfigError, InvalidRequest
from galley.request import StructuredOutputsParams
from galley.structured.check import ConstraintChecker


@pytest.fixture
def checker() -> ConstraintChecker:
    return ConstraintChecker(structured_outputs_settings({}))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"json": {"type": "object"}}, "json"),
        ({"json": '{"type": "object"}'}, "json"),
        ({"json_object": True}, "json"),
        ({"regex": "[a-z]+"}, "regex"),
        ({"choice": ["yes", 'a "quoted" one']}, "choice"),
        ({"grammar": 'root ::= "a" | root "b"'}, "ebnf"),
        ({"grammar": 'start: "a" | B\nB: /::=x+/'}, "lark"),
    ],
)
def test_each_form_is_compiled(
    checker: ConstraintChecker, given: dict[str, Any], kind: str
) -> None:
    params = StructuredOutputsParams(**given)
    constraint = checker.check(params)
    assert constraint.kind == kind
    assert constraint.backend == "guidance"
    assert checker.known(params) is constraint


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "structured_outputs"),
        ({"json": {}, "regex": "a"}, "structured_outputs"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"regex": ""}, "structured_outputs.regex"),
        ({"grammar": "  "}, "structured_outputs.grammar"),
        ({"json_object": False}, "structured_outputs.json_object"),
        ({"regex": "(("}, "structured_outputs.regex"),
        ({"grammar": "start: nothing"}, "structured_outputs.grammar"),
        ({"grammar": 'root ::= ("a"'}, "structured_outputs.grammar"),
        ({"json": "{"}, "structured_outputs.json"),
        ({"json": "7"}, "structured_outputs.json"),
        ({"regex": 7}, "regex"),
        ({"regexp": "a"}, "regexp"),
    ],
)
def test_refusals_name_the_field(
    checker: ConstraintChecker, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        checker.check(StructuredOutputsParams(**given))
    assert refused.value.field == field


def test_settings_of_the_server_join_those_of_a_request() -> None:
    checker = ConstraintChecker(structured_outputs_settings({"disable_any_whitespace": True}))
    assert not checker.check(StructuredOutputsParams(json_object=True)).any_whitespace


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "outlines"}, "auto, guidance, xgrammar"),
        ({"whitespace": True}, "whitespace"),
        ({"disable_any_whitespace": "x"}, r"config\.disable_any_whitespace"),
        ({"reasoning_parser": "qwen3"}, "--reasoning-parser"),
    ],
)
def test_settings_that_are_not_known_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        structured_outputs_settings(given)
    assert refused.value.field == "structured_outputs_config"
