"""Turns `StructuredOutputsParams` into a `Constraint`, or refuses them with the field at fault.

For the front end: it normalises JSON schemas and compiles without a vocabulary, so that an error is
found before the engine has the request. What has been checked lately is not checked again.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from typing import Any

import msgspec

from galley.config.structured import StructuredOutputsSettings
from galley.errors import InvalidRequest
from galley.request import Constraint, StructuredOutputsParams
from galley.structured.backend import validate
from galley.structured.schema import Refused, SchemaOptions, normalise

#: Most constraints that are remembered as checked.
REMEMBERED = 256

_FIELD = "structured_outputs"


class ConstraintChecker:
    """Checks for one model's settings. Its methods may be called from several threads."""

    def __init__(self, settings: StructuredOutputsSettings) -> None:
        self._settings = settings
        self._checked: OrderedDict[bytes, Constraint] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, params: StructuredOutputsParams) -> Constraint | None:
        """The constraint, if the same parameters have been checked lately."""
        key = msgspec.msgpack.encode(params)
        with self._lock:
            constraint = self._checked.get(key)
            if constraint is not None:
                self._checked.move_to_end(key)
        return constraint

    def check(self, params: StructuredOutputsParams) -> Constraint:
        """The constraint. May take long: call it in a thread where others wait.

        Raises InvalidRequest naming the field.
        """
        known = self.known(params)
        if known is not None:
            return known
        constraint = self._constraint(params)
        validate(constraint)
        with self._lock:
            self._checked[msgspec.msgpack.encode(params)] = constraint
            while len(self._checked) > REMEMBERED:
                self._checked.popitem(last=False)
        return constraint

    def _constraint(self, params: StructuredOutputsParams) -> Constraint:
        settings, name = self._settings, params.kind
        kind, text = _KINDS[name](params)
        compact = params.disable_any_whitespace or settings.disable_any_whitespace
        if kind == "json":
            closed = params.disable_additional_properties or settings.disable_additional_properties
            text = _normalised(
                text, SchemaOptions(not compact, params.whitespace_pattern, not closed)
            )
        return Constraint(
            kind=kind,
            text=text,
            backend=settings.backend_for(kind),
            any_whitespace=not compact,
            whitespace_pattern=params.whitespace_pattern,
            start_after=tuple(map(tuple, params.start_after or ())),
            field=f"{_FIELD}.{name}",
        )


def _normalised(text: str, options: SchemaOptions) -> str:
    schema = _parsed(text, "json")
    if not isinstance(schema, (dict, bool)):
        raise InvalidRequest(
            f"{_FIELD}: json must be a JSON schema (an object).", field=f"{_FIELD}.json"
        )
    try:
        return json.dumps(normalise(schema, options))
    except Refused as error:
        raise InvalidRequest(error.message, field=f"{_FIELD}.json") from None


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequest(
            f"{_FIELD}: {name} is not valid JSON: {error}.", field=f"{_FIELD}.{name}"
        ) from None
    except RecursionError:
        raise InvalidRequest(
            f"{_FIELD}: {name} is nested too deeply.", field=f"{_FIELD}.{name}"
        ) from None


def _json(params: StructuredOutputsParams) -> tuple[Any, str]:
    given = params.json
    return "json", given if isinstance(given, str) else json.dumps(given)


def _json_object(params: StructuredOutputsParams) -> tuple[Any, str]:
    return "json", '{"type": "object"}'


def _regex(params: StructuredOutputsParams) -> tuple[Any, str]:
    return "regex", params.regex or ""


def _choice(params: StructuredOutputsParams) -> tuple[Any, str]:
    return "choice", json.dumps(list(dict.fromkeys(params.choice or ())))


def _grammar(params: StructuredOutputsParams) -> tuple[Any, str]:
    text = params.grammar or ""
    # EBNF defines rules with "::=", Lark with ":".
    return ("ebnf" if re.search(r"(?m)^[^#/\"']*::=", text) else "lark"), text


def _structural_tag(params: StructuredOutputsParams) -> tuple[Any, str]:
    return "structural_tag", json.dumps(_parsed(params.structural_tag or "", "structural_tag"))


_KINDS = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
}
