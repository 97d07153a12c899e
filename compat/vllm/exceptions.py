"""Errors that plugins raise."""

from __future__ import annotations

from typing import Any


class VLLMValidationError(ValueError):
    """A request's parameter is not valid."""

    def __init__(self, message: str, *, parameter: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value
