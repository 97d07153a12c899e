"""Wire types of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from galley.errors import InvalidRequest, Unsupported
from galley.server.protocol.base import BodyReader, Int, PromptLogprob, Usage
from galley.server.protocol.fields import CHAT
from galley.server.protocol.generation import Caps, GenerationFields, check_generation

Messages = Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
#: Part types whose text is under the key beside them.
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


class ChatCompletionRequest(GenerationFields, kw_only=True):
    """Answer a conversation."""

    messages: Messages
    max_completion_tokens: Int | None = None
    logprobs: bool | None = False
    top_logprobs: Int | None = 0
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    documents: list[dict[str, str]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_prompt_text: bool | None = None


reader = BodyReader(ChatCompletionRequest, CHAT)


def check_chat(request: ChatCompletionRequest, caps: Caps) -> None:
    """Raise InvalidRequest for fields that contradict each other; names the field."""
    check_generation(request, caps)
    top = request.top_logprobs or 0
    if top < -1:
        raise InvalidRequest(
            "`top_logprobs` must be a non-negative value or -1.", field="top_logprobs"
        )
    if top != 0 and not request.logprobs:
        raise InvalidRequest(
            "when using `top_logprobs`, `logprobs` must be set to true.", field="top_logprobs"
        )


def check_prompt_end(add_generation_prompt: bool, continue_final_message: bool) -> None:
    """Raise InvalidRequest if both are asked for."""
    if add_generation_prompt and continue_final_message:
        raise InvalidRequest(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to true.",
            field="continue_final_message",
        )


def check_messages(messages: list[dict[str, Any]]) -> None:
    """Raise for what is not a message, naming its place ("messages[2].content[0]")."""
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(f"messages[{i}].role must be a non-empty text.", field="messages")
        if isinstance(content, list):
            for j, part in enumerate(content):
                _check_part(part, f"messages[{i}].content[{j}]")
        elif content is not None and not isinstance(content, str):
            raise InvalidRequest(
                f"messages[{i}].content must be a text or a list of parts.", field="messages"
            )


def _check_part(part: Any, where: str) -> None:
    if isinstance(part, str):
        return
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise InvalidRequest(
            f"{where} must be a text or an object with a `type`.", field="messages"
        )
    if kind not in TEXT_PARTS:
        raise Unsupported(
            f"{where}: parts of type {kind:.50} are not supported: only text is available yet.",
            field="messages",
        )
    if not isinstance(part.get(TEXT_PARTS[kind]), str):
        raise InvalidRequest(f"{where}.{TEXT_PARTS[kind]} must be a text.", field="messages")


class TokenLogprob(msgspec.Struct):
    """A token's text, log-probability and UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob] = []


class ChatLogprobs(msgspec.Struct):
    content: list[ContentLogprob]


class ChatMessage(msgspec.Struct):
    role: str
    content: str | None
    refusal: str | None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] = []
    reasoning: str | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletionResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: Usage
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None
    kv_transfer_params: dict[str, Any] | None = None
