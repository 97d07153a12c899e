"""The requests that a task has submitted, for its line in the access log."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galley.frontend.output_processor import RequestState

#: Set by the server for the task that serves a call; None: they are not collected.
SUBMITTED: ContextVar[list[RequestState] | None] = ContextVar("galley_submitted", default=None)
