"""Wire types of tools: of OpenAI's chat completions and responses, and of Anthropic's messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from galley.chat.tools import FunctionTool, ToolChoice

Name = Annotated[str, msgspec.Meta(min_length=1)]
Mode = Literal["none", "auto", "required"]


# ------------------------------------------------------------------ chat completions


class FunctionDefinition(msgspec.Struct):
    """A function; `parameters` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(msgspec.Struct):
    type: Literal["function"]
    function: FunctionDefinition

    def tool(self) -> FunctionTool:
        f = self.function
        return FunctionTool(f.name, f.description, f.parameters, bool(f.strict))


class FunctionName(msgspec.Struct):
    name: Name


class NamedTool(msgspec.Struct, tag_field="type", tag="function"):
    """The only function to call."""

    function: FunctionName


class ToolReference(msgspec.Struct):
    type: Literal["function"]
    function: FunctionName


class AllowedToolsMode(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: list[ToolReference]


class AllowedTools(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    """The functions that may be called."""

    allowed_tools: AllowedToolsMode


ChatToolChoice = Mode | NamedTool | AllowedTools


def chat_choice(choice: ChatToolChoice | None, parallel: bool | None) -> ToolChoice | None:
    """The choice, None where the request makes none."""
    together = parallel is not False
    if isinstance(choice, NamedTool):
        return ToolChoice("named", choice.function.name, together)
    if isinstance(choice, AllowedTools):
        allowed = choice.allowed_tools
        names = tuple(reference.function.name for reference in allowed.tools)
        return ToolChoice(allowed.mode, None, together, names)
    return None if choice is None else ToolChoice(choice, None, together)


# ------------------------------------------------------------------ responses


class ResponseTool(msgspec.Struct):
    """A function; tools that the server itself would run are not available."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> FunctionTool:
        return FunctionTool(self.name, self.description, self.parameters, bool(self.strict))


class NamedResponseTool(msgspec.Struct, tag_field="type", tag="function"):
    """The only function to call."""

    name: Name


class ResponseToolReference(msgspec.Struct):
    type: Literal["function"]
    name: Name


class AllowedResponseTools(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    """The functions that may be called."""

    mode: Literal["auto", "required"]
    tools: list[ResponseToolReference]


ResponseToolChoice = Mode | NamedResponseTool | AllowedResponseTools


def response_choice(choice: ResponseToolChoice | None, parallel: bool | None) -> ToolChoice | None:
    """The choice, None where the request makes none."""
    together = parallel is not False
    if isinstance(choice, NamedResponseTool):
        return ToolChoice("named", choice.name, together)
    if isinstance(choice, AllowedResponseTools):
        names = tuple(reference.name for reference in choice.tools)
        return ToolChoice(choice.mode, None, together, names)
    return None if choice is None else ToolChoice(choice, None, together)


# ------------------------------------------------------------------ Anthropic's messages


class MessageTool(msgspec.Struct):
    """A function of the client; tools that the server itself would run are not available."""

    name: Name
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None

    def tool(self) -> FunctionTool:
        return FunctionTool(self.name, self.description, self.input_schema, bool(self.strict))


class MessageToolChoice(msgspec.Struct):
    """`any` is at least one tool, `tool` the one called `name`."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool = False


def message_choice(choice: MessageToolChoice | None) -> ToolChoice | None:
    """The choice, None where the request makes none."""
    if choice is None:
        return None
    together = not choice.disable_parallel_tool_use
    if choice.type == "tool":
        return ToolChoice("named", choice.name, together)
    mode: Mode = "required" if choice.type == "any" else choice.type
    return ToolChoice(mode, None, together)
