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
from galley.structured.structural_tag import MalformedTag, guidance_grammar

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
        start_after=tuple(job.params.start_after or ()),
        field=job.params.field_name,
    )
    validate(constraint)
    return constraint


def _json(job: Job) -> tuple[Any, str]:
    given = job.params.json
    schema = _parsed(given, job) if isinstance(given, str) else given
    if not isinstance(schema, (dict, bool)):
        raise _fault(job, "must be a JSON schema (an object)")
    return "json", _normalised(schema, job)


def _json_object(job: Job) -> tuple[Any, str]:
    return "json", _normalised({"type": "object"}, job)


def _normalised(schema: Any, job: Job) -> str:
    try:
        return json.dumps(normalise(schema, _options(job)))
    except Refused as error:
        raise InvalidRequest(error.message, field=job.params.field_name) from None


def _fault(job: Job, reason: str) -> InvalidRequest:
    field = job.params.field_name
    return InvalidRequest(f"{field} {reason}.", field=field)


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


def _parsed(text: str, job: Job) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _fault(job, f"is not valid JSON: {error}") from None
    except RecursionError:
        raise _fault(job, "is nested too deeply") from None


def _regex(job: Job) -> tuple[Any, str]:
    try:
        return "regex", pattern_of(whole(job.params.regex or ""))
    except UnsupportedPattern as error:
        reason = str(error)
    except TooManyStates:
        reason = "is too complex"
    raise _fault(job, reason)


def _choice(job: Job) -> tuple[Any, str]:
    choices = list(dict.fromkeys(job.params.choice or ()))
    if len(choices) > MAX_CHOICES:
        raise _fault(job, f"has {len(choices)} entries; at most {MAX_CHOICES} are supported")
    if any(len(choice) > MAX_CHOICE for choice in choices):
        raise _fault(job, f"has an entry of more than {MAX_CHOICE} characters")
    if "" in choices:
        raise _fault(job, "must not contain an empty text")
    return "choice", json.dumps(choices)


def _grammar(job: Job) -> tuple[Any, str]:
    text = job.params.grammar or ""
    # EBNF defines rules with "::=", Lark with ":".
    return ("ebnf" if re.search(r"(?m)^[^#/\"']*::=", text) else "lark"), text


def _structural_tag(job: Job) -> tuple[Any, str]:
    tag = _parsed(job.params.structural_tag or "", job)
    if job.backend == "guidance":
        try:
            tag = guidance_grammar(tag, _options(job), job.params.special_tokens)
        except MalformedTag as error:
            field = job.params.field_name
            raise InvalidRequest(f"{field}: {error}.", field=field) from None
    return "structural_tag", json.dumps(tag)


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
