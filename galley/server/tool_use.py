"""What a request says of tools and reasoning: the form in which all three APIs use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from galley.chat.tools import FunctionTool, ToolChoice
from galley.errors import InvalidRequest

if TYPE_CHECKING:
    from galley.config.server import ServerConfig


@dataclass(frozen=True)
class ToolUse:
    """The tools of a conversation.

    Attributes:
        shown: tools that the prompt describes.
        reasoning: the answer shows reasoning.
    """

    tools: tuple[FunctionTool, ...] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)
    shown: tuple[FunctionTool, ...] = ()
    reasoning: bool = True

    def for_template(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates expect them; None: there are none."""
        return [tool.for_template() for tool in self.shown] or None


def tool_use(
    server: ServerConfig,
    tools: Sequence[FunctionTool],
    choice: ToolChoice | None,
    *,
    given: bool,
    reasoning: bool = True,
) -> ToolUse:
    """
    Args:
        tools: in the request.
        choice: None: as the model likes, where there are tools.
        given: the request has a list of tools, which may be empty.

    Raises:
        InvalidRequest: a choice without tools, or of one that does not exist; "auto" where the
            server does not know how the model writes calls.
    """
    if choice is None:
        choice = ToolChoice("auto" if tools else "none")
    if choice.mode == "none":
        shown = () if server.exclude_tools_when_tool_choice_none else tuple(tools)
        return ToolUse(tuple(tools), choice, shown, reasoning)
    if not given:
        raise InvalidRequest("When using `tool_choice`, `tools` must be set.", field="tool_choice")
    names = {tool.name for tool in tools}
    wanted = (choice.name or "",) if choice.mode == "named" else choice.allowed
    for name in wanted:
        if name not in names:
            raise InvalidRequest(
                f"The tool {name!r:.100} specified in `tool_choice` does not match any of the "
                "specified `tools`.",
                field="tool_choice",
            )
    if not tools:
        choice = replace(choice, mode="none")
    if choice.mode == "auto" and not (server.enable_auto_tool_choice and server.tool_call_parser):
        raise InvalidRequest(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be '
            "set",
            field="tool_choice",
        )
    return ToolUse(tuple(tools), choice, tuple(tools), reasoning)
