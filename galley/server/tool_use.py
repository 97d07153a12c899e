"""What a request says of tools and reasoning: the form in which all three APIs use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from galley.chat.tool_schema import schema_of
from galley.chat.tools import FunctionTool, ToolChoice
from galley.errors import InvalidRequest
from galley.request import SamplingParams, StructuredOutputsParams

if TYPE_CHECKING:
    from galley.config.server import ServerConfig
    from galley.server.context import Context


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


def constrained(ctx: Context, params: SamplingParams, prompt: str, use: ToolUse) -> SamplingParams:
    """`params` whose answer calls the tools that it must call.

    A constraint, also one that the request brings itself, applies to what follows the reasoning
    where the prompt has begun it, and to the whole answer otherwise.

    Raises:
        Unsupported: the format of the model's calls cannot be constrained.
        InvalidRequest: the parameters of a function are nested too deeply.
    """
    try:
        schema = schema_of(use.tools, use.choice)
    except RecursionError:
        raise InvalidRequest("tools: parameters are nested too deeply.", field="tools") from None
    output = params.structured_outputs
    if schema is not None:
        output = StructuredOutputsParams(json=schema, whitespace_pattern=" ?")
    if output is None:
        return params
    marker = None if ctx.formats is None else ctx.formats.constraint_starts_after(prompt)
    if marker is not None:
        ids = ctx.require_tokenizer().encode(marker, False)
        output = msgspec.structs.replace(output, start_after=[ids])
    return msgspec.structs.replace(params, structured_outputs=output)
