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
    GenerationFields,
    PositiveShare,
    Temperature,
    Text,
    check_generation,
)
from galley.server.protocol.turns import Block

Content = str | list[Block]


class InputMessage(msgspec.Struct):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content


class Conversation(msgspec.Struct, kw_only=True):
    """A conversation to answer."""

    model: str
    messages: Annotated[list[InputMessage], msgspec.Meta(min_length=1)]
    system: Content | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def continues(self) -> bool:
        """The last turn is the assistant's: the answer continues it."""
        return self.messages[-1].role == "assistant"

    def chat_messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates expect it.

        Raises:
            Unsupported: content that is not text; names the place.
        """
        messages = []
        if self.system:
            messages.append({"role": "system", "content": _text(self.system, "system")})
        for i, message in enumerate(self.messages):
            text = _text(message.content, f"messages[{i}].content")
            messages.append({"role": message.role, "content": text})
        return messages


def _text(content: Content, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, block in enumerate(content):
        kind, text = block.get("type"), block.get("text")
        if kind != "text":
            raise Unsupported(
                f"{where}[{i}]: blocks of type {kind!s:.50} are not supported: only text is "
                "available yet.",
                field="messages",
            )
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}[{i}].text must be a text.", field="messages")
        texts.append(text)
    return "\n".join(texts)


class MessagesRequest(Conversation, kw_only=True):
    """Answer a conversation."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    stop_sequences: list[Text] | None = None
    stream: bool | None = False
    temperature: Temperature | None = None
    top_k: CountOrAll | None = None
    top_p: PositiveShare | None = None
    cache_salt: Text | None = None

    def generation(self, caps: Caps) -> GenerationFields:
        """The same fields under the names of the other endpoints. Raises InvalidRequest."""
        fields = GenerationFields(
            model=self.model,
            stream=self.stream,
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            cache_salt=self.cache_salt,
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
