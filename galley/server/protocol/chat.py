"""Wire types of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from galley.errors import InvalidRequest
from galley.server.protocol.base import BodyReader, PerRequestMetrics, PromptLogprob, Usage
from galley.server.protocol.fields import CHAT, CHAT_BATCH
from galley.server.protocol.generation import (
    Caps,
    Count,
    CountOrAll,
    GenerationFields,
    Positive,
    check_generation,
)
from galley.server.protocol.tools import ChatTool, ChatToolChoice
from galley.server.protocol.turns import Turn

Messages = Annotated[list[Turn], msgspec.Meta(min_length=1)]


class ChatFields(GenerationFields, kw_only=True):
    """Fields of requests for one answer and for a batch of answers. Programs written for vLLM also
    send `logprobs` as a text.
    """

    max_completion_tokens: Positive | None = None
    logprobs: bool | Literal["true", "false"] | None = False
    top_logprobs: CountOrAll | None = 0
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
    tools: Annotated[list[ChatTool], msgspec.Meta(min_length=1)] | None = None
    tool_choice: ChatToolChoice | None = None
    parallel_tool_calls: bool | None = True
    include_reasoning: bool = True
    thinking_token_budget: Count | None = None
    kv_transfer_params: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.logprobs, str):
            self.logprobs = self.logprobs == "true"


class ChatCompletionRequest(ChatFields, kw_only=True):
    """Answer a conversation."""

    messages: Messages


class BatchChatCompletionRequest(ChatFields, kw_only=True):
    """Answer several conversations, with the same parameters."""

    messages: Annotated[list[Messages], msgspec.Meta(min_length=1)]


reader = BodyReader(ChatCompletionRequest, CHAT)
batch_reader = BodyReader(BatchChatCompletionRequest, CHAT_BATCH)


def check_batch(request: BatchChatCompletionRequest, caps: Caps) -> None:
    """Raise InvalidRequest for what `check_chat` finds, a stream, or too many conversations."""
    check_chat(request, caps)
    for name in ("stream", "use_beam_search", "return_prompt_text"):
        if getattr(request, name):
            raise InvalidRequest(f"`{name}` is not available for batches.", field=name)
    if len(request.messages) > caps.prompts:
        raise InvalidRequest(
            f"messages is limited to {caps.prompts} conversations a call, got "
            f"{len(request.messages)}.",
            field="messages",
        )


def check_chat(request: ChatFields, caps: Caps) -> None:
    """Raise InvalidRequest for fields that contradict each other; names the field."""
    check_generation(request, caps)
    if (request.thinking_token_budget or 0) < 0:
        raise InvalidRequest(
            "`thinking_token_budget` must be non-negative.", field="thinking_token_budget"
        )
    top = request.top_logprobs or 0
    if top < -1:
        raise InvalidRequest(
            "`top_logprobs` must be a non-negative value or -1.", field="top_logprobs"
        )
    if top != 0 and not request.logprobs:
        raise InvalidRequest(
            "when using `top_logprobs`, `logprobs` must be set to true.", field="top_logprobs"
        )
    if request.logprob_token_ids and not request.logprobs:
        raise InvalidRequest(
            "when using `logprob_token_ids`, `logprobs` must be set to true.",
            field="logprob_token_ids",
        )


class TokenLogprob(msgspec.Struct):
    """A token's text, log-probability and UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class ContentLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob] = []


class ChatLogprobs(msgspec.Struct):
    content: list[ContentLogprob]


class FunctionCall(msgspec.Struct):
    """A function's name and its arguments as JSON text."""

    name: str
    arguments: str


class ChatToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct):
    role: str
    content: str | None
    refusal: str | None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ChatToolCall] | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    seed: int | msgspec.UnsetType | None = msgspec.UNSET


class ChatCompletionResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: Usage
    metrics: PerRequestMetrics | None = None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None
    kv_transfer_params: dict[str, Any] | None = None
