"""Wire types of Anthropic's API: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from galley.errors import InvalidRequest, Unsupported
from galley.server.protocol.base import BodyReader
from galley.server.protocol.fields import ANTHROPIC, ANTHROPIC_COUNT
from galley.server.protocol.generation import (
    Caps,
    CountOrAll,
    ExtraArgs,
    GenerationFields,
    PositiveShare,
    Temperature,
    Text,
    check_generation,
)
from galley.server.protocol.structured import OutputConfig
from galley.server.protocol.tools import MessageTool, MessageToolChoice
from galley.server.protocol.turns import Block

Content = str | list[Block]


class InputMessage(msgspec.Struct):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content


class Thinking(msgspec.Struct):
    """Whether the model thinks before it answers (`adaptive`: as it likes)."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class Conversation(msgspec.Struct, kw_only=True):
    """A conversation to answer."""

    model: str
    messages: Annotated[list[InputMessage], msgspec.Meta(min_length=1)]
    system: Content | None = None
    tools: list[MessageTool] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    output_config: OutputConfig | None = None

    @property
    def continues(self) -> bool:
        """The last turn is the assistant's: the answer continues it."""
        return self.messages[-1].role == "assistant"

    def chat_messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates expect it.

        Results of tools become messages of their own; an assistant's thinking and calls become
        fields of its message.

        Raises:
            InvalidRequest: a block that lacks a field; names the place.
            Unsupported: a block of another type.
        """
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": _text(self.system, "system")})
        for i, message in enumerate(self.messages):
            where = f"messages[{i}].content"
            if isinstance(message.content, str):
                messages.append({"role": message.role, "content": message.content})
            elif message.role == "assistant":
                messages.append(_answer(message.content, where))
            else:
                messages += _said(message.role, message.content, where)
        return messages

    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the chat template; those of the request win."""
        kwargs: dict[str, Any] = {}
        if self.thinking is not None and self.thinking.type != "adaptive":
            thinks = self.thinking.type == "enabled"
            kwargs = {"enable_thinking": thinks, "thinking": thinks}
        if self.output_config is not None and self.output_config.effort is not None:
            kwargs.setdefault("enable_thinking", True)
            kwargs["reasoning_effort"] = self.output_config.effort
        return {**kwargs, **(self.chat_template_kwargs or {})}


def _text(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a text or a list of blocks.", field="messages")
    texts = []
    for i, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text":
            raise _unsupported(kind, f"{where}[{i}]", "text is")
        texts.append(_field(block, "text", str, f"{where}[{i}]"))
    return "\n".join(texts)


class MessageFields(GenerationFields):
    """Fields of a request under the names of the other endpoints."""

    format_field = "output_config"


def _said(role: str, content: list[Block], where: str) -> list[dict[str, Any]]:
    """Messages of a user's blocks: results of tools, then text, as they alternate."""
    messages: list[dict[str, Any]] = []
    for i, block in enumerate(content):
        here = f"{where}[{i}]"
        kind = block.get("type")
        if kind == "tool_result" and role == "user":
            result = _text(block.get("content"), f"{here}.content")
            call_id = _field(block, "tool_use_id", str, here)
            messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
        elif kind == "text":
            text = _field(block, "text", str, here)
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += "\n" + text
            else:
                messages.append({"role": role, "content": text})
        else:
            raise _unsupported(kind, here, "text and tool_result are")
    return messages or [{"role": role, "content": ""}]


def _answer(content: list[Block], where: str) -> dict[str, Any]:
    """The message of an assistant's blocks."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for i, block in enumerate(content):
        here = f"{where}[{i}]"
        kind = block.get("type")
        if kind == "text":
            texts.append(_field(block, "text", str, here))
        elif kind == "thinking":
            thoughts.append(_field(block, "thinking", str, here))
        elif kind == "tool_use":
            name, id = _field(block, "name", str, here), _field(block, "id", str, here)
            function = {"name": name, "arguments": _field(block, "input", dict, here)}
            calls.append({"id": id, "type": "function", "function": function})
        elif kind != "redacted_thinking":
            raise _unsupported(kind, here, "text, thinking and tool_use are")
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _field(block: Block, name: str, kind: type, where: str) -> Any:
    value = block.get(name)
    if not isinstance(value, kind):
        what = "a text" if kind is str else "an object"
        raise InvalidRequest(f"{where}.{name} must be {what}.", field="messages")
    return value


def _unsupported(kind: Any, where: str, supported: str) -> Unsupported:
    return Unsupported(
        f"{where}: blocks of type {kind!s:.50} are not supported here: only {supported}.",
        field="messages",
    )


class MessagesRequest(Conversation, kw_only=True):
    """Answer a conversation."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    stop_sequences: list[Text] | None = None
    stream: bool | None = False
    temperature: Temperature | None = None
    top_k: CountOrAll | None = None
    top_p: PositiveShare | None = None
    cache_salt: Text | None = None
    vllm_xargs: ExtraArgs | None = None
    kv_transfer_params: dict[str, Any] | None = None

    def generation(self, caps: Caps) -> GenerationFields:
        """The same fields under the names of the other endpoints. Raises InvalidRequest."""
        config = self.output_config
        fields = MessageFields(
            model=self.model,
            stream=self.stream,
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            cache_salt=self.cache_salt,
            vllm_xargs=self.vllm_xargs,
            response_format=None if config is None else config.response_format,
        )
        check_generation(fields, caps)
        return fields


class CountTokensRequest(Conversation, kw_only=True):
    """Count a conversation's tokens."""


class TokenCount(msgspec.Struct):
    input_tokens: int


class MessageUsage(msgspec.Struct):
    """Tokens; the prompt's are the sum of the three kinds of input."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """Reasoning; `signature` is empty, since the server does not sign it."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Any = {}


AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock


class Message(msgspec.Struct, kw_only=True):
    """An answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    content: list[AnswerBlock] = []
    model: str
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    kv_transfer_params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ErrorDetail(msgspec.Struct):
    """An error."""

    type: str
    message: str


class MessagesError(msgspec.Struct):
    """Anthropic's error object."""

    type: Literal["error"]
    error: ErrorDetail


messages_reader = BodyReader(MessagesRequest, ANTHROPIC)
count_reader = BodyReader(CountTokensRequest, ANTHROPIC_COUNT)
