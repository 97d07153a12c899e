"""Builds answers of /v1/chat/completions, whole and as events.

Knows the wire format; it knows neither HTTP nor how a request was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from galley.chat.parts import (
    AssistantParser,
    Content,
    Part,
    Reasoning,
    ToolCall,
    ToolCallArguments,
    ToolCallStart,
    assemble,
)
from galley.errors import GalleyError
from galley.outputs import CompletionOutput, RequestOutput
from galley.server.logprobs import TokenBytes, chat_logprobs, prompt_logprobs
from galley.server.protocol.chat import (
    ChatChoice,
    ChatCompletionResponse,
    ChatFields,
    ChatLogprobs,
    ChatMessage,
    ChatToolCall,
    FunctionCall,
)
from galley.server.protocol.tools import NamedTool
from galley.server.response_builder import (
    DONE,
    ResponseHeader,
    UsageCounter,
    error_event_and_done,
    to_json,
)

_PLAIN_END = b'},"logprobs":null,"finish_reason":null}]}\n\n'


@dataclass(frozen=True, slots=True)
class AnswerRole:
    """The role of an answer's messages, and the text that is put before each choice's own."""

    role: str
    echo: str = ""


class ChatResponseBuilder:
    """Builds one answer to a conversation or, unstreamed, to several.

    Choices are numbered over all conversations: choice j of conversation i is i * n + j.

    Args:
        roles: one a conversation.
        bytes_of: the bytes of a token id, for logprobs.
        parsers: of the choices' texts by number; None: the text is the content.
        prompt_text: the rendered prompt, where the request asks for it.
        as_ids: write `token_id:N` for token texts in logprobs.
        force_usage: every event of a stream reports usage without being asked.
    """

    def __init__(
        self,
        head: ResponseHeader,
        request: ChatFields,
        usage: UsageCounter,
        *,
        roles: Sequence[AnswerRole],
        bytes_of: TokenBytes,
        parsers: Sequence[AssistantParser] | None = None,
        prompt_text: str | None = None,
        as_ids: bool = False,
        force_usage: bool = False,
    ) -> None:
        self._head = head
        self._request = request
        self._usage = usage
        self._roles = roles
        self._bytes_of = bytes_of
        self._parsers = parsers
        #: Numbers of choices that have called a tool.
        self._calling: set[int] = set()
        #: The request names the function, or forces calls at all.
        self._named = isinstance(request.tool_choice, NamedTool)
        self._forced = self._named or request.tool_choice == "required"
        self._prompt_text = prompt_text
        self._as_ids = as_ids
        self._usage_at_end = request.include_usage or force_usage
        self._continuous_usage = request.continuous_usage or force_usage
        self._begun = False
        self._plain = parsers is None and not (
            request.logprobs or request.return_token_ids or self._continuous_usage
        )
        self._prefix = head.chunk_prefix("chat.completion.chunk")
        self._n = request.n or 1
        self._plain_starts = [
            self._prefix + b'{"index":%d,"delta":{"content":' % i for i in range(self._n)
        ]

    # ------------------------------------------------------------------ whole

    def whole(self, outputs: Sequence[RequestOutput]) -> bytes:
        choices = []
        for i, output in enumerate(outputs):
            self._usage.add(i, output)
            role = self._roles[i]
            choices += [self._choice(i * self._n + c.index, c, role) for c in output.outputs]
        # Prompt fields are only returned for a single prompt.
        [only] = outputs if len(outputs) == 1 else [None]
        ids = only.prompt_token_ids if only and self._request.return_token_ids else None
        return to_json(
            ChatCompletionResponse(
                id=self._head.id,
                created=self._head.created,
                model=self._head.model,
                choices=choices,
                system_fingerprint=self._head.fingerprint,
                usage=self._usage.usage(),
                prompt_logprobs=prompt_logprobs(only.prompt_logprobs if only else None),
                prompt_token_ids=ids,
                prompt_text=self._prompt_text,
                metrics=self._usage.metrics(),
                kv_transfer_params=self._request.kv_transfer_params,
            )
        )

    def _choice(self, index: int, choice: CompletionOutput, role: AnswerRole) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=self._message(index, choice, role),
            logprobs=self._logprobs(choice),
            finish_reason=self._finish_reason(index, choice),
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if self._request.return_token_ids else None,
            seed=choice.seed if self._request.return_seed else UNSET,
        )

    def _message(self, index: int, choice: CompletionOutput, role: AnswerRole) -> ChatMessage:
        if self._parsers is None:
            return ChatMessage(role.role, role.echo + choice.text)
        blocks = assemble(self._parts(index, choice))
        content = "".join(block.text for block in blocks if isinstance(block, Content))
        reasoning = "".join(block.text for block in blocks if isinstance(block, Reasoning))
        calls = [
            ChatToolCall(block.id, FunctionCall(block.name, block.arguments))
            for block in blocks
            if isinstance(block, ToolCall)
        ]
        # As in vLLM's answers, a forced call has an empty content.
        nothing = "" if self._forced or not (reasoning or calls) else None
        return ChatMessage(
            role.role,
            role.echo + content or nothing,
            tool_calls=calls or UNSET,
            reasoning=reasoning or None,
            reasoning_content=reasoning or UNSET,
        )

    def _parts(self, index: int, choice: CompletionOutput) -> list[Part]:
        """The new parts of a choice; all that are left once it has ended."""
        assert self._parsers is not None
        parser = self._parsers[index]
        parts = parser.push(choice.text, choice.token_ids)
        if choice.finish_reason is not None:
            parts += parser.finish()
        if any(isinstance(part, ToolCallStart) for part in parts):
            self._calling.add(index)
        return parts

    def _finish_reason(self, index: int, choice: CompletionOutput) -> str | None:
        """As in OpenAI's and vLLM's answers, a call that the request names ends with "stop"."""
        called = choice.finish_reason == "stop" and index in self._calling and not self._named
        return "tool_calls" if called else choice.finish_reason

    def _logprobs(self, choice: CompletionOutput) -> ChatLogprobs | None:
        if not self._request.logprobs or choice.logprobs is None:
            return None
        top = None if self._request.logprob_token_ids else self._request.top_logprobs or 0
        return chat_logprobs(choice.token_ids, choice.logprobs, top, self._as_ids, self._bytes_of)

    # ------------------------------------------------------------------ events

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for what is new in `output` (one prompt: `index` is 0)."""
        self._usage.add_prompt(index, output)
        events = [] if self._begun else self._begin(output)
        self._usage.add(index, output)
        plain = self._plain
        for choice in output.outputs:
            if choice.finish_reason is None and plain:
                if choice.text:
                    start = self._plain_starts[choice.index]
                    events.append(start + to_json(choice.text) + _PLAIN_END)
            elif choice.finish_reason is not None or choice.token_ids:
                events.append(self._delta(choice))
        return b"".join(events)

    def around_text(self, index: int) -> tuple[bytes, bytes] | None:
        return (self._plain_starts[0], _PLAIN_END) if self._plain else None

    def last(self) -> bytes:
        if not self._usage_at_end:
            return DONE
        return self._prefix + b"]," + self._usage.end() + DONE

    def failed(self, error: GalleyError) -> bytes:
        return error_event_and_done(error)

    def _begin(self, output: RequestOutput) -> list[bytes]:
        """A chunk with the role for each choice, then the echo."""
        self._begun = True
        extra: dict[str, Any] = {}
        if self._request.return_token_ids:
            extra["prompt_token_ids"] = output.prompt_token_ids
        if self._prompt_text is not None:
            extra["prompt_text"] = self._prompt_text
        [role] = self._roles
        events = []
        for i in range(self._n):
            delta = {"role": role.role, "content": ""}
            choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
            events.append(self._event(choice, extra))
        if role.echo:
            for i in range(self._n):
                delta = {"content": role.echo}
                choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
                events.append(self._event(choice, {}))
        return events

    def _delta(self, choice: CompletionOutput) -> bytes:
        if self._parsers is None:
            delta: dict[str, Any] = {"content": choice.text}
        else:
            delta = _delta_of(self._parts(choice.index, choice))
            request = self._request
            extras = choice.finish_reason or request.logprobs or request.return_token_ids
            if not delta and not extras:
                return b""
        fields = {
            "index": choice.index,
            "delta": delta,
            "logprobs": self._logprobs(choice),
            "finish_reason": self._finish_reason(choice.index, choice),
        }
        if choice.finish_reason is not None:
            fields["stop_reason"] = choice.stop_reason
            if self._request.return_seed:
                fields["seed"] = choice.seed
        if self._request.return_token_ids:
            fields["token_ids"] = choice.token_ids
        return self._event(fields, {})

    def _event(self, choice: dict[str, Any], extra: dict[str, Any]) -> bytes:
        if self._continuous_usage:
            extra = {**extra, "usage": self._usage.usage()}
        after = b"," + to_json(extra)[1:] if extra else b"}"
        return self._prefix + to_json(choice) + b"]" + after + b"\n\n"


def _delta_of(parts: list[Part]) -> dict[str, Any]:
    """`delta` of a chunk that brings these parts."""
    delta: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        if isinstance(part, Content):
            delta["content"] = delta.get("content", "") + part.text
        elif isinstance(part, Reasoning):
            delta["reasoning"] = delta.get("reasoning", "") + part.text
        elif isinstance(part, ToolCallStart):
            function = {"name": part.name, "arguments": ""}
            calls[part.index] = {"id": part.id, "type": "function", "function": function}
        elif isinstance(part, ToolCallArguments):
            function = calls.setdefault(part.index, {"function": {"arguments": ""}})["function"]
            function["arguments"] += part.text
    if "reasoning" in delta:
        delta["reasoning_content"] = delta["reasoning"]
    if calls:
        delta["tool_calls"] = [{"index": index, **call} for index, call in calls.items()]
    return delta
