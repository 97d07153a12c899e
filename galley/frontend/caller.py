"""The client whose request is being submitted, for fairness among clients (`--fairness-by`)."""

from __future__ import annotations

from contextvars import ContextVar

#: Set by the server for the task that serves a request.
CALLER: ContextVar[str] = ContextVar("galley_caller", default="")
