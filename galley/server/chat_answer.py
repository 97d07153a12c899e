"""Answers of /v1/chat/completions: whole, and as events.

Knows the shapes that clients read; it knows neither HTTP nor how a request was made.
"""

from __future__ import annotations

from typing import Any

from galley.request import CompletionOutput, RequestOutput
from galley.server.answer import Head, Tally, to_json
from galley.server.logprobs import TokenBytes, chat_logprobs, prompt_logprobs
from galley.server.protocol.chat import (
    ChatChoice,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatLogprobs,
    ChatMessage,
)


class ChatAnswer:
    """One answer in the making.

    Args:
        role: of the answer's messages.
        bytes_of: the bytes of a token id, for logprobs.
        echo: text that goes before each choice's own.
        prompt_text: the rendered prompt, where the request asks for it.
        as_ids: write `token_id:N` for token texts in logprobs.
        force_usage: a stream tells its usage unasked.
    """

    def __init__(
        self,
        head: Head,
        request: ChatCompletionRequest,
        tally: Tally,
        *,
        role: str,
        bytes_of: TokenBytes,
        echo: str = "",
        prompt_text: str | None = None,
        as_ids: bool = False,
        force_usage: bool = False,
    ) -> None:
        self._head = head
        self._request = request
        self._tally = tally
        self._role = role
        self._bytes_of = bytes_of
        self._echo = echo
        self._prompt_text = prompt_text
        self._as_ids = as_ids
        self._usage_at_end = request.include_usage or force_usage
        self._begun = False
        self._plain = not (request.logprobs or request.return_token_ids or request.continuous_usage)
        self._prefix = head.chunk_prefix("chat.completion.chunk")
        n = request.n or 1
        self._plain_starts = [
            self._prefix + b'{"index":%d,"delta":{"content":' % i for i in range(n)
        ]

    # ------------------------------------------------------------------ whole

    def whole(self, output: RequestOutput) -> bytes:
        request = self._request
        self._tally.add(0, output)
        choices = [
            ChatChoice(
                index=c.index,
                message=ChatMessage(self._role, self._echo + c.text),
                logprobs=self._logprobs(c),
                finish_reason=c.finish_reason,
                stop_reason=c.stop_reason,
                token_ids=c.token_ids if request.return_token_ids else None,
            )
            for c in output.outputs
        ]
        return to_json(
            ChatCompletionResponse(
                id=self._head.id,
                created=self._head.created,
                model=self._head.model,
                choices=choices,
                system_fingerprint=self._head.fingerprint,
                usage=self._tally.usage(),
                prompt_logprobs=prompt_logprobs(output.prompt_logprobs),
                prompt_token_ids=output.prompt_token_ids if request.return_token_ids else None,
                prompt_text=self._prompt_text,
            )
        )

    def _logprobs(self, choice: CompletionOutput) -> ChatLogprobs | None:
        if not self._request.logprobs or choice.logprobs is None:
            return None
        top = self._request.top_logprobs or 0
        return chat_logprobs(choice.token_ids, choice.logprobs, top, self._as_ids, self._bytes_of)

    # ------------------------------------------------------------------ events

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for the news in `output` (one prompt: `index` is 0)."""
        self._tally.add(index, output)
        events = [] if self._begun else self._begin(output)
        plain = self._plain
        for choice in output.outputs:
            if choice.finish_reason is None and plain:
                if choice.text:
                    events.append(self._plain_starts[choice.index])
                    events.append(to_json(choice.text))
                    events.append(b'},"logprobs":null,"finish_reason":null}]}\n\n')
            elif choice.finish_reason is not None or choice.token_ids:
                events.append(self._delta(choice))
        return b"".join(events)

    def last(self) -> bytes:
        if not self._usage_at_end:
            return b""
        return self._prefix + b'],"usage":' + to_json(self._tally.usage()) + b"}\n\n"

    def _begin(self, output: RequestOutput) -> list[bytes]:
        """A chunk with the role for each choice, then the echo."""
        self._begun = True
        extra: dict[str, Any] = {}
        if self._request.return_token_ids:
            extra["prompt_token_ids"] = output.prompt_token_ids
        if self._prompt_text is not None:
            extra["prompt_text"] = self._prompt_text
        n = len(self._plain_starts)
        events = []
        for i in range(n):
            delta = {"role": self._role, "content": ""}
            choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
            events.append(self._event(choice, extra))
        if self._echo:
            for i in range(n):
                delta = {"content": self._echo}
                choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
                events.append(self._event(choice, {}))
        return events

    def _delta(self, choice: CompletionOutput) -> bytes:
        fields = {
            "index": choice.index,
            "delta": {"content": choice.text},
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish_reason,
        }
        if choice.finish_reason is not None:
            fields["stop_reason"] = choice.stop_reason
        if self._request.return_token_ids:
            fields["token_ids"] = choice.token_ids
        return self._event(fields, {})

    def _event(self, choice: dict[str, Any], extra: dict[str, Any]) -> bytes:
        if self._request.continuous_usage:
            extra = {**extra, "usage": self._tally.usage()}
        after = b"," + to_json(extra)[1:] if extra else b"}"
        return self._prefix + to_json(choice) + b"]" + after + b"\n\n"
