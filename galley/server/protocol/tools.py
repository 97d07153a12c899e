"""Wire types of tools: of OpenAI's chat completions and responses, and of Anthropic's messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec

from galley.chat.custom_tools import function_of
from galley.chat.tools import FunctionTool, ToolChoice
from galley.errors import InvalidRequest

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


class ResponseFunction(msgspec.Struct, tag_field="type", tag="function"):
    """A function; `parameters` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def functions(self) -> list[FunctionTool]:
        return [FunctionTool(self.name, self.description, self.parameters, bool(self.strict))]


class FreeText(msgspec.Struct):
    type: Literal["text"]


class ResponseCustomTool(msgspec.Struct, tag_field="type", tag="custom"):
    """A tool whose input is a free text."""

    name: Name
    description: str | None = None
    format: FreeText | None = None

    def functions(self) -> list[FunctionTool]:
        return [function_of(self.name, self.description)]


class ResponseNamespace(msgspec.Struct, tag_field="type", tag="namespace"):
    """Functions whose names the model has with that of the namespace in front."""

    name: Name
    tools: list[ResponseFunction]
    description: str | None = None

    def functions(self) -> list[FunctionTool]:
        return [
            replace(function, name=name_within(self.name, function.name))
            for tool in self.tools
            for function in tool.functions()
        ]


#: Tools that the server itself would run are not available.
ResponseTool = ResponseFunction | ResponseCustomTool | ResponseNamespace


def name_within(namespace: str, name: str) -> str:
    """The name of a namespace's function, as the model has it."""
    return f"{namespace}__{name}"


def names_within(tools: Iterable[ResponseTool]) -> dict[str, tuple[str, str]]:
    """The names of the functions of namespaces → namespace, name."""
    return {
        name_within(tool.name, function.name): (tool.name, function.name)
        for tool in tools
        if isinstance(tool, ResponseNamespace)
        for function in tool.tools
    }


class NamedResponseTool(msgspec.Struct, tag_field="type", tag="function"):
    """The only function to call."""

    name: Name


class NamedCustomTool(msgspec.Struct, tag_field="type", tag="custom"):
    """The only tool to call."""

    name: Name


class ResponseToolReference(msgspec.Struct):
    type: Literal["function", "custom"]
    name: Name


class AllowedResponseTools(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    """The tools that may be called."""

    mode: Literal["auto", "required"]
    tools: list[ResponseToolReference]


ResponseToolChoice = Mode | NamedResponseTool | NamedCustomTool | AllowedResponseTools


def response_choice(
    choice: ResponseToolChoice | None, parallel: bool | None, tools: Sequence[ResponseTool]
) -> ToolChoice | None:
    """The choice, None where the request makes none.

    Raises InvalidRequest for a name that is one of several namespaces.
    """
    together = parallel is not False
    if isinstance(choice, NamedResponseTool | NamedCustomTool):
        return ToolChoice("named", _full_name(choice.name, tools), together)
    if isinstance(choice, AllowedResponseTools):
        names = tuple(_full_name(reference.name, tools) for reference in choice.tools)
        return ToolChoice(choice.mode, None, together, names)
    return None if choice is None else ToolChoice(choice, None, together)


def _full_name(name: str, tools: Sequence[ResponseTool]) -> str:
    """The name of a tool as the model has it; a choice may leave its namespace out."""
    if any(tool.name == name for tool in tools if not isinstance(tool, ResponseNamespace)):
        return name
    found = [full for full, (_, own) in names_within(tools).items() if own == name]
    if len(found) > 1:
        raise InvalidRequest(
            f"tool_choice: {name:.100} is ambiguous: {', '.join(found):.300}.", field="tool_choice"
        )
    return found[0] if found else name


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
