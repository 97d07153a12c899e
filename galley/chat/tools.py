"""Tools that a conversation offers, and which of them the model may or must call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class FunctionTool:
    """A function that the model may call.

    Attributes:
        parameters: the JSON schema of its arguments; None: an object of anything.
        strict: the arguments must obey the schema.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolChoice:
    """The tools that an answer calls, or may call.

    Attributes:
        mode: never, as the model likes, at least one, or the one called `name`.
        parallel: several calls in one answer.
        allowed: names of the only tools that may be called; empty: all.
    """

    mode: Literal["none", "auto", "required", "named"] = "none"
    name: str | None = None
    parallel: bool = True
    allowed: tuple[str, ...] = field(default=())

    @property
    def forced(self) -> bool:
        """The answer can be nothing but calls."""
        return self.mode in ("required", "named")

    def callable(self, tools: Sequence[FunctionTool]) -> list[FunctionTool]:
        """Those of `tools` that may be called."""
        if self.mode == "none":
            return []
        if self.mode == "named":
            return [tool for tool in tools if tool.name == self.name]
        return [tool for tool in tools if not self.allowed or tool.name in self.allowed]
