"""Wire types of /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from galley.chat.custom_tools import arguments_of
from galley.errors import InvalidRequest, Unsupported
from galley.request import StructuredOutputs
from galley.server.protocol.base import BodyReader
from galley.server.protocol.chat import ContentLogprob
from galley.server.protocol.fields import RESPONSES
from galley.server.protocol.generation import (
    Caps,
    Count,
    GenerationFields,
    Positive,
    SamplingFields,
    Text,
    check_generation,
)
from galley.server.protocol.structured import TextConfig
from galley.server.protocol.tools import ResponseTool, ResponseToolChoice, name_within
from galley.server.protocol.turns import Item, Turn

LOGPROBS = "message.output_text.logprobs"
#: Values of `include`: all but logprobs concern tools, images and encrypted reasoning, which no
#: answer has.
Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
NOT_EMPTY = msgspec.Meta(extra_json_schema={"minItems": 1})
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class Reasoning(msgspec.Struct):
    """Reasoning effort, passed to the chat template."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class RetrieveQuery(msgspec.Struct):
    stream: bool = False
    starting_after: int = -1


class ResponseFields(GenerationFields):
    """Fields of a request under the names of the other endpoints."""

    format_field = "text"


class ResponsesRequest(SamplingFields, kw_only=True):
    """Answer a text or a conversation, which may continue an earlier answer."""

    input: Text | Annotated[list[Item], NOT_EMPTY]
    instructions: str | None = None
    previous_response_id: str | None = None
    previous_input_messages: list[Turn] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    background: bool | None = False
    store: bool | None = True
    include: list[Include] | None = None
    max_output_tokens: Positive | None = None
    top_logprobs: Count | None = 0
    truncation: Literal["auto", "disabled"] | None = "disabled"
    reasoning: Reasoning | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] = "auto"
    tools: list[ResponseTool] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = True
    include_reasoning: bool = True
    enable_response_messages: bool = False
    text: TextConfig | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def generation(self, caps: Caps) -> GenerationFields:
        """The same fields under the names of the other endpoints. Raises InvalidRequest."""
        shared = {name: getattr(self, name) for name in SamplingFields.__struct_fields__}
        fields = ResponseFields(
            truncate_prompt_tokens=-1 if self.truncation == "auto" else None,
            response_format=None if self.text is None else self.text.response_format,
            structured_outputs=self.structured_outputs,
            **shared,
        )
        check_generation(fields, caps)
        return fields

    def messages(self) -> list[dict[str, Any]]:
        """`input` as chat messages.

        The items of one turn of the assistant (reasoning, text and calls) become one message.

        Raises:
            InvalidRequest: an item that lacks a field.
            Unsupported: an item that is no message, call, result or reasoning.
        """
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        messages: list[dict[str, Any]] = []
        for i, item in enumerate(self.input):
            add_item(messages, item, f"input[{i}]")
        return messages

    @property
    def continues_message(self) -> bool:
        """Whether the input ends with a message of the assistant that is not complete."""
        last = self.input[-1] if isinstance(self.input, list) else {}
        return (
            last.get("type", "message") == "message"
            and last.get("role") == "assistant"
            and last.get("status") in ("in_progress", "incomplete")
        )


def add_item(messages: list[dict[str, Any]], item: Item, where: str) -> None:
    """Add an item to the last of `messages`, if it belongs to the same turn, or after it.

    Raises as `ResponsesRequest.messages`, with `where` for the place of the item.
    """
    kind = item.get("type", "message")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind == "message":
        if "role" not in item or "content" not in item:
            raise InvalidRequest(f"{where} must have a role and content.", field="input")
        role = "system" if item["role"] == "developer" else item["role"]
        if role == "assistant" and last and not (last["content"] or "tool_calls" in last):
            last["content"] = item["content"]
        else:
            messages.append({"role": role, "content": item["content"]})
    elif kind == "reasoning":
        texts = _reasoning_texts(item, where)
        messages.append({"role": "assistant", "content": "", "reasoning_content": "\n".join(texts)})
    elif kind in ("function_call", "custom_tool_call"):
        name, call_id = (_text_of(item, key, where) for key in ("name", "call_id"))
        if kind == "function_call":
            arguments = _text_of(item, "arguments", where)
        else:
            arguments = arguments_of(_text_of(item, "input", where))
        if item.get("namespace") is not None:
            name = name_within(_text_of(item, "namespace", where), name)
        if last is None:
            last = {"role": "assistant", "content": ""}
            messages.append(last)
        call = {"name": name, "arguments": arguments}
        calls = last.setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": call})
    elif kind in ("function_call_output", "custom_tool_call_output"):
        call_id = _text_of(item, "call_id", where)
        if not isinstance(item.get("output"), str | list):
            raise InvalidRequest(
                f"{where}.output must be a text or a list of parts.", field="input"
            )
        messages.append({"role": "tool", "tool_call_id": call_id, "content": item["output"]})
    else:
        raise Unsupported(
            f"{where}: items of type {kind!s:.50} are not supported: only messages, calls, "
            "their outputs and reasoning are.",
            field="input",
        )


def _text_of(item: Item, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{key} must be a text.", field="input")
    return value


def _reasoning_texts(item: Item, where: str) -> list[str]:
    content, summary = (_texts(item.get(key), f"{where}.{key}") for key in ("content", "summary"))
    return content or summary


def _texts(parts: Any, where: str) -> list[str]:
    if parts is None:
        return []
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts
    ):
        raise InvalidRequest(f"{where} must be a list of texts.", field="input")
    return [part["text"] for part in parts]


def check_responses(request: ResponsesRequest) -> None:
    """Raise InvalidRequest or Unsupported for fields that contradict each other; names one."""
    if not request.input:
        raise InvalidRequest("input must not be empty.", field="input")
    top = request.top_logprobs or 0
    if top < 0:
        raise InvalidRequest("`top_logprobs` must be non-negative.", field="top_logprobs")
    if request.background and not request.store:
        raise InvalidRequest("`background` needs `store`.", field="background")
    if request.previous_response_id and request.previous_input_messages:
        raise InvalidRequest(
            "Only one of `previous_input_messages` and `previous_response_id` can be set.",
            field="previous_response_id",
        )
    reasoning = request.reasoning
    summaries = (reasoning.summary, reasoning.generate_summary) if reasoning else ()
    # "auto" is the best summary that the model has: none.
    if any(summary not in (None, "auto") for summary in summaries):
        raise Unsupported("summaries of reasoning are not available yet.", field="reasoning")


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[ContentLogprob] | None = None


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    content: list[OutputText] = []
    role: Literal["assistant"] = "assistant"


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """Reasoning text; there are no summaries."""

    id: str
    status: ItemStatus
    content: list[ReasoningText] = []
    summary: list[Any] = []
    encrypted_content: str | None = None


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    """A call of a function; `arguments` is JSON text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str = ""
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class CustomCallItem(msgspec.Struct, tag_field="type", tag="custom_tool_call"):
    """A call of a tool whose input is a free text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    input: str = ""


OutputItem = OutputMessage | ReasoningItem | FunctionCallItem | CustomCallItem


class InputDetails(msgspec.Struct):
    cached_tokens: int = 0


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = msgspec.field(default_factory=OutputDetails)
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens", "content_filter"]


class RawMessage(msgspec.Struct):
    """The model's whole input or output: text and tokens (enable_response_messages)."""

    message: str
    tokens: list[int]
    type: Literal["raw_message_tokens"] = "raw_message_tokens"


class ResponseError(msgspec.Struct):
    code: str
    message: str


class ResponseObject(msgspec.Struct, kw_only=True):
    """An answer, or its state before it is complete."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    metadata: dict[str, str] | None = None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    tool_choice: ResponseToolChoice = "auto"
    tools: list[ResponseTool] = []
    background: bool
    max_output_tokens: int | None
    max_tool_calls: int | None = None
    previous_response_id: str | None = None
    prompt: None = None
    reasoning: Reasoning | None = None
    service_tier: str
    text: TextConfig | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
    user: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    input_messages: list[RawMessage] | None = None
    output_messages: list[RawMessage] | None = None
    kv_transfer_params: dict[str, Any] | None = None


reader = BodyReader(ResponsesRequest, RESPONSES)
