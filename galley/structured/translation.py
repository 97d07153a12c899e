"""Turns `StructuredOutputsParams` into a `Constraint`: parsed, normalised, compiled once.

Runs under limits of time and memory, as the program of `check.ConstraintChecker`: what takes too
long ends the process. Messages are `check.Job` and `check.Result`.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import msgspec

from galley.errors import InvalidRequest
from galley.limited_process import serve
from galley.request import Constraint
from galley.structured.backend import load_backend, validate
from galley.structured.check import Job, Result
from galley.structured.regex import (
    Automaton,
    TooManyStates,
    UnsupportedPattern,
    pattern_of,
    whole,
)
from galley.structured.schema import Refused, SchemaOptions, normalise
from galley.structured.structural_tag import guidance_grammar

_FIELD = "structured_outputs"
#: Most entries of `choice`, and the longest one in characters: the time of a mask grows with it.
MAX_CHOICES = 50_000
MAX_CHOICE = 10_000


def constraint_of(job: Job) -> Constraint:
    """The constraint, which the backend has compiled without a vocabulary.

    Raises:
        InvalidRequest: names the field.
    """
    name = job.params.kind
    kind, text = _KINDS[name](job)
    constraint = Constraint(
        kind=kind,
        text=text,
        backend=job.backend,
        any_whitespace=not job.compact,
        whitespace_pattern=job.params.whitespace_pattern,
        start_after=tuple(map(tuple, job.params.start_after or ())),
        field=f"{_FIELD}.{name}",
    )
    validate(constraint)
    return constraint


def _json(job: Job) -> tuple[Any, str]:
    given = job.params.json
    schema = _parsed(given, "json") if isinstance(given, str) else given
    if not isinstance(schema, (dict, bool)):
        raise InvalidRequest(
            f"{_FIELD}: json must be a JSON schema (an object).", field=f"{_FIELD}.json"
        )
    return "json", _normalised(schema, job, "json")


def _json_object(job: Job) -> tuple[Any, str]:
    return "json", _normalised({"type": "object"}, job, "json_object")


def _normalised(schema: Any, job: Job, name: str) -> str:
    try:
        return json.dumps(normalise(schema, _options(job)))
    except Refused as error:
        raise InvalidRequest(error.message, field=f"{_FIELD}.{name}") from None


def _options(job: Job) -> SchemaOptions:
    white = job.params.whitespace_pattern
    if white is not None:
        _check_whitespace(white)
    return SchemaOptions(not job.compact, white, not job.closed)


def _check_whitespace(pattern: str) -> None:
    """Other characters would be part of the answer, and not JSON."""
    field = f"{_FIELD}.whitespace_pattern"
    try:
        found = Automaton.of_languages(whole(pattern))
        other = found.intersection(Automaton.of_languages(whole("[ \\t\\n\\r]*")).complement())
    except UnsupportedPattern as error:
        raise InvalidRequest(f"{_FIELD}: whitespace_pattern {error}.", field=field) from None
    except TooManyStates:
        raise InvalidRequest(f"{_FIELD}: whitespace_pattern is too complex.", field=field) from None
    if not other.empty:
        raise InvalidRequest(
            f"{_FIELD}: whitespace_pattern must match spaces, tabs, newlines and carriage returns "
            "only.",
            field=field,
        )


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


def _regex(job: Job) -> tuple[Any, str]:
    try:
        return "regex", pattern_of(whole(job.params.regex or ""))
    except UnsupportedPattern as error:
        reason = str(error)
    except TooManyStates:
        reason = "is too complex"
    raise InvalidRequest(f"{_FIELD}: regex {reason}.", field=f"{_FIELD}.regex")


def _choice(job: Job) -> tuple[Any, str]:
    choices = list(dict.fromkeys(job.params.choice or ()))
    if len(choices) > MAX_CHOICES:
        raise InvalidRequest(
            f"{_FIELD}: choice has {len(choices)} entries; at most {MAX_CHOICES} are supported.",
            field=f"{_FIELD}.choice",
        )
    if any(len(choice) > MAX_CHOICE for choice in choices):
        raise InvalidRequest(
            f"{_FIELD}: choice has an entry of more than {MAX_CHOICE} characters.",
            field=f"{_FIELD}.choice",
        )
    if "" in choices:
        raise InvalidRequest(
            f"{_FIELD}: choice must not contain an empty text.", field=f"{_FIELD}.choice"
        )
    return "choice", json.dumps(choices)


def _grammar(job: Job) -> tuple[Any, str]:
    text = job.params.grammar or ""
    # EBNF defines rules with "::=", Lark with ":".
    return ("ebnf" if re.search(r"(?m)^[^#/\"']*::=", text) else "lark"), text


def _structural_tag(job: Job) -> tuple[Any, str]:
    name = "structural_tag"
    tag = _parsed(job.params.structural_tag or "", name)
    if job.backend == "guidance":
        tag = guidance_grammar(tag, _options(job), job.params.special_tokens)
    return name, json.dumps(tag)


_KINDS = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
}


def _handle(message: bytes) -> bytes:
    job = msgspec.msgpack.decode(message, type=Job)
    try:
        result = Result(constraint_of(job))
    except InvalidRequest as error:
        result = Result(message=error.message, field=error.field)
    return msgspec.msgpack.encode(result)


if __name__ == "__main__":
    load_backend(sys.argv[3])
    serve(_handle, float(sys.argv[1]), int(sys.argv[2]))
