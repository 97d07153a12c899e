"""Builds answers of /v1/completions, whole and as events.

Choices are numbered over all prompts: choice j of prompt i is i * n + j.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from galley.errors import GalleyError
from galley.outputs import CompletionOutput, RequestOutput
from galley.server.logprobs import Candidates, completion_logprobs, prompt_logprobs
from galley.server.protocol.completions import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from galley.server.response_builder import (
    DONE,
    ResponseHeader,
    UsageCounter,
    error_event_and_done,
    to_json,
)

_PLAIN_END = b',"logprobs":null,"finish_reason":null}]}\n\n'


class CompletionResponseBuilder:
    """Builds one answer to one prompt or several.

    Args:
        text_of: the text of a token id, and of a prompt given as token ids.
        as_ids: write `token_id:N` for token texts in logprobs.
        force_usage: every event of a stream reports usage without being asked.
        offset: characters of each answer before the part that is built.
    """

    def __init__(
        self,
        head: ResponseHeader,
        request: CompletionRequest,
        usage: UsageCounter,
        *,
        text_of: Callable[[list[int]], str],
        as_ids: bool = False,
        force_usage: bool = False,
        offset: int = 0,
    ) -> None:
        self._head = head
        self._request = request
        self._usage = usage
        self._text_of = text_of
        self._as_ids = as_ids
        self._usage_at_end = request.include_usage or force_usage
        self._continuous_usage = request.continuous_usage or force_usage
        self._n = request.n or 1
        #: Only the prompt is returned, not the one token that was generated to process it.
        self._echo_only = bool(request.echo) and request.max_tokens == 0
        self._prefix = head.chunk_prefix("text_completion")
        self._plain = not (
            request.echo
            or request.logprobs is not None
            or request.return_token_ids
            or self._continuous_usage
        )
        self._begun: set[int] = set()
        self._offset = offset
        self._offsets: dict[int, int] = {}

    # ------------------------------------------------------------------ whole

    def whole(self, outputs: list[RequestOutput]) -> bytes:
        choices = []
        for i, output in enumerate(outputs):
            self._usage.add(i, output)
            for choice in output.outputs:
                choices.append(self._choice(i * self._n + choice.index, choice, output))
        return to_json(
            CompletionResponse(
                id=self._head.id,
                created=self._head.created,
                model=self._head.model,
                choices=choices,
                system_fingerprint=self._head.fingerprint,
                usage=self._usage.usage(),
                metrics=self._usage.metrics(),
                kv_transfer_params=self._request.kv_transfer_params,
            )
        )

    def _choice(
        self, index: int, choice: CompletionOutput, output: RequestOutput
    ) -> CompletionChoice:
        asks_ids = self._request.return_token_ids
        asks_prompt = self._request.prompt_logprobs is not None
        text, logprobs = self._content(index, choice, output)
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=self._token_ids(choice) if asks_ids else None,
            prompt_logprobs=prompt_logprobs(output.prompt_logprobs) if asks_prompt else None,
            prompt_token_ids=output.prompt_token_ids if asks_ids else None,
            seed=choice.seed if self._request.return_seed else UNSET,
        )

    def _token_ids(self, choice: CompletionOutput) -> list[int]:
        return [] if self._echo_only else choice.token_ids

    def _content(
        self, index: int, choice: CompletionOutput, output: RequestOutput
    ) -> tuple[str, CompletionLogprobs | None]:
        """New text and logprobs of a choice; an echo precedes the first."""
        text = "" if self._echo_only else choice.text
        token_ids = self._token_ids(choice)
        positions: list[Candidates | None] = []
        if not self._echo_only:
            positions.extend(choice.logprobs or ())
        if self._request.echo and index not in self._begun:
            prompt = output.prompt
            if prompt is None:
                prompt = self._text_of(output.prompt_token_ids)
            text = prompt + text
            token_ids = [*output.prompt_token_ids, *token_ids]
            positions = [*(output.prompt_logprobs or ()), *positions]
        self._begun.add(index)
        if self._request.logprobs is None:
            return text, None
        logprobs = completion_logprobs(
            token_ids,
            positions,
            None if self._request.logprob_token_ids else self._request.logprobs,
            self._as_ids,
            lambda token_id: self._text_of([token_id]),
            self._offsets.get(index, self._offset),
        )
        if logprobs.tokens:
            self._offsets[index] = logprobs.text_offset[-1] + len(logprobs.tokens[-1])
        return text, logprobs

    # ------------------------------------------------------------------ events

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for what is new in `output` of prompt `index`."""
        self._usage.add(index, output)
        events = []
        for choice in output.outputs:
            number = index * self._n + choice.index
            if choice.finish_reason is None and self._plain:
                if choice.text:
                    before, after = self._around(number)
                    events.append(before + to_json(choice.text) + after)
            elif choice.finish_reason is not None or choice.token_ids:
                events.append(self._delta(number, choice, output))
        return b"".join(events)

    def around_text(self, index: int) -> tuple[bytes, bytes] | None:
        return self._around(index * self._n) if self._plain else None

    def _around(self, number: int) -> tuple[bytes, bytes]:
        """Bytes of a plain event of a choice before and after its text."""
        return self._prefix + b'{"index":%d,"text":' % number, _PLAIN_END

    def last(self) -> bytes:
        if not self._usage_at_end:
            return DONE
        return self._prefix + b"]," + self._usage.end() + DONE

    def failed(self, error: GalleyError) -> bytes:
        return error_event_and_done(error)

    def _delta(self, number: int, choice: CompletionOutput, output: RequestOutput) -> bytes:
        first = number not in self._begun
        text, logprobs = self._content(number, choice, output)
        fields: dict[str, Any] = {
            "index": number,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._request.return_token_ids:
            fields["token_ids"] = self._token_ids(choice)
            if first:
                fields["prompt_token_ids"] = output.prompt_token_ids
        if self._request.return_seed and choice.finish_reason is not None:
            fields["seed"] = choice.seed
        event = self._prefix + to_json(fields) + b"]"
        if self._continuous_usage:
            event += b',"usage":' + to_json(self._usage.usage())
        return event + b"}\n\n"
