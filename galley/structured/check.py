"""Checks `StructuredOutputsParams`: they become a `Constraint`, or an error that names the field.

For the front end: an error is found before the engine has the request. The work is done by
`translation` in a child process under limits of time and memory, so that no constraint can hold up
the front end, and none reaches the engine that takes long to compile. What has been checked lately
is not checked again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import msgspec

from galley.config.structured import StructuredOutputsSettings
from galley.errors import InvalidRequest
from galley.limited_process import LimitedProcess, LimitExceeded
from galley.request import Constraint, StructuredOutputsParams

#: Most constraints that are remembered as checked.
REMEMBERED = 256
#: Limits of one check: CPU seconds, bytes beyond what the child has when it is idle.
CPU_SECONDS = 0.8
MEMORY = 1 << 30
#: Most bytes of a constraint, as it is given and as it is handed to the engine.
MAX_GIVEN = 4 << 20
MAX_RESULT = 16 << 20


class Job(msgspec.Struct):
    """Parameters with the settings of the server applied."""

    params: StructuredOutputsParams
    backend: str
    compact: bool
    closed: bool


class Result(msgspec.Struct):
    """The constraint, or why there is none."""

    constraint: Constraint | None = None
    message: str = ""
    field: str | None = None


class ConstraintChecker:
    """Checks for one model's settings. Its methods may be called from several threads."""

    def __init__(self, settings: StructuredOutputsSettings) -> None:
        self._settings = settings
        backend = settings.chosen_backend
        self._backend = backend
        self._process = LimitedProcess(
            "galley.structured.translation", CPU_SECONDS, MEMORY, MAX_RESULT, (backend,)
        )
        self._checked: OrderedDict[bytes, Constraint] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, params: StructuredOutputsParams) -> Constraint | None:
        """The constraint, if the same parameters have been checked lately.

        Raises InvalidRequest for what is nested too deeply to be looked at.
        """
        key = _encoded(params, params)
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
        with self._lock:
            self._checked[_encoded(params, params)] = constraint
            while len(self._checked) > REMEMBERED:
                self._checked.popitem(last=False)
        return constraint

    def _constraint(self, params: StructuredOutputsParams) -> Constraint:
        settings, field = self._settings, params.field_name
        compact = params.disable_any_whitespace or settings.disable_any_whitespace
        closed = params.disable_additional_properties or settings.disable_additional_properties
        job = _encoded(Job(params, self._backend, compact, closed), params)
        if len(job) > MAX_GIVEN:
            raise InvalidRequest(
                f"{field} has {len(job)} bytes; at most {MAX_GIVEN} are supported.", field=field
            )
        try:
            result = msgspec.msgpack.decode(self._process.call(job), type=Result)
        except LimitExceeded as error:
            raise InvalidRequest(f"{field} is too complex: {error}.", field=field) from None
        if result.constraint is None:
            raise InvalidRequest(result.message, field=result.field)
        return result.constraint


def _encoded(value: msgspec.Struct, params: StructuredOutputsParams) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except RecursionError:
        field = params.field_name
        raise InvalidRequest(f"{field} is nested too deeply.", field=field) from None
