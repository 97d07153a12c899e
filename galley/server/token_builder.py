"""Builds answers of /inference/v1/generate, whole and as events: token ids in place of text."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from galley.errors import GalleyError
from galley.outputs import CompletionOutput, RequestOutput
from galley.server.logprobs import chat_logprobs, prompt_logprobs
from galley.server.protocol.chat import ChatLogprobs
from galley.server.protocol.scale_out import GenerateChoice, GenerateRequest, GenerateResponse
from galley.server.response_builder import (
    DONE,
    ResponseHeader,
    UsageCounter,
    error_event_and_done,
    to_json,
)


class TokenResponseBuilder:
    """Builds one answer.

    Args:
        top: candidates of each position; None: those requested by id.
    """

    def __init__(
        self,
        head: ResponseHeader,
        request: GenerateRequest,
        usage: UsageCounter,
        top: int | None,
        force_usage: bool = False,
    ) -> None:
        self._head = head
        self._request = request
        self._usage = usage
        self._top = top
        self._usage_at_end = request.include_usage or force_usage
        self._begun = False

    def whole(self, output: RequestOutput) -> bytes:
        self._usage.add(0, output)
        return to_json(
            GenerateResponse(
                request_id=self._head.id,
                model=self._head.model,
                created=self._head.created,
                choices=[self._choice(choice) for choice in output.outputs],
                output_mode=self._request.output_mode,
                usage=self._usage.usage(),
                prompt_logprobs=prompt_logprobs(output.prompt_logprobs),
                prompt_token_ids=self._prompt(output),
                kv_transfer_params=self._request.kv_transfer_params,
            )
        )

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for what is new in `output`."""
        self._usage.add(index, output)
        events = []
        for choice in output.outputs:
            if choice.token_ids or choice.finish_reason is not None:
                ids = None if self._begun else self._prompt(output)
                self._begun = True
                fields: dict[str, Any] = {"choices": [self._choice(choice)]}
                if self._request.continuous_usage:
                    fields["usage"] = self._usage.usage()
                events.append(self._event(fields, ids))
        return b"".join(events)

    def around_text(self, index: int) -> None:
        return None

    def last(self) -> bytes:
        if not self._usage_at_end:
            return DONE
        return self._event({"choices": [], "usage": self._usage.usage()}, None) + DONE

    def failed(self, error: GalleyError) -> bytes:
        return error_event_and_done(error)

    def _event(self, fields: dict[str, Any], prompt_token_ids: list[int] | None) -> bytes:
        event = {"request_id": self._head.id, **fields}
        if prompt_token_ids is not None:
            event["prompt_token_ids"] = prompt_token_ids
        return b"data: " + to_json(event) + b"\n\n"

    def _prompt(self, output: RequestOutput) -> list[int] | None:
        return output.prompt_token_ids if self._request.return_token_ids else None

    def _choice(self, choice: CompletionOutput) -> GenerateChoice:
        return GenerateChoice(
            index=choice.index,
            logprobs=self._logprobs(choice),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids,
            text=choice.text if self._request.output_mode == "text" else UNSET,
        )

    def _logprobs(self, choice: CompletionOutput) -> ChatLogprobs | None:
        if choice.logprobs is None:
            return None
        return chat_logprobs(choice.token_ids, choice.logprobs, self._top, True, None)
