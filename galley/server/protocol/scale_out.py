"""Wire types between a front end without an engine and an engine that is given token ids.

request ── render ──▶ GenerateRequest ── generate ──▶ GenerateResponse ── derender ──▶ answer
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Literal

import msgspec

from galley.errors import InvalidRequest, Unsupported
from galley.request import (
    STEERING_FIELDS,
    RequestOutputKind,
    SamplingParams,
    TokenMarker,
)
from galley.server.protocol.base import (
    BodyReader,
    Int,
    NoEffect,
    PromptLogprob,
    Refused,
    StreamOptions,
    TokenId,
    Usage,
)
from galley.server.protocol.chat import ChatCompletionRequest, ChatLogprobs
from galley.server.protocol.completions import CompletionRequest
from galley.server.protocol.generation import Count, GenerationFields, StructuredOutputs, Text

#: Fields of `SamplingParams` that stay in a process.
_INTERNAL = ("output_kind", "flat_logprobs", "detokenize", "logits_processors")
#: Most bytes of the steps of a marker.
MAX_STEPS = 1 << 20

Ids = Annotated[list[TokenId], msgspec.Meta(min_length=1)]


class GenerateRequest(msgspec.Struct, kw_only=True):
    """Token ids to continue.

    Attributes:
        token_offsets: of each token, its first character and the one behind it, in the text that
            was tokenised.
        sampling_params: fields of `SamplingParams` by name; `max_tokens` left out: to the model's
            length.
        reasoning_ended: a constraint applies from the first token on.
        output_mode: "text" adds the text of each choice.
    """

    request_id: str | None = None
    token_ids: Ids
    token_offsets: list[tuple[int, int]] | None = None
    features: None = None
    content_parts: None = None
    sampling_params: dict[str, Any]
    model: str | None = None
    reasoning_ended: bool | None = None
    return_token_ids: bool | None = None
    output_mode: Literal["tokens", "text"] = "tokens"
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    cache_salt: Text | None = None
    priority: Int = 0
    kv_transfer_params: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous

    def fields(self) -> GenerationFields:
        """The attributes of a request that the submission of a prompt reads."""
        given = self.sampling_params.get("structured_outputs")
        return GenerationFields(
            model=self.model,
            cache_salt=self.cache_salt,
            priority=self.priority,
            stream=self.stream,
            structured_outputs=StructuredOutputs() if given is not None else None,
        )

    def params(self, vocab_size: int) -> SamplingParams:
        """Raises InvalidRequest, Unsupported naming the field."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "Stream options can only be defined when `stream=True`.", field="stream_options"
            )
        kind = RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY
        given = {
            name: value
            for name, value in self.sampling_params.items()
            if name not in (*_INTERNAL, *STEERING_FIELDS) and name[:1] != "_"
        }
        if self.sampling_params.get("logits_processors"):
            raise Unsupported(
                "logits_processors are Python functions: they act in LLM, not over the network.",
                field="sampling_params",
            )
        given["stop"] = given.get("stop") or None
        given["bad_words"] = given.get("bad_words") or None
        try:
            params = SamplingParams(
                **{
                    **given,
                    "max_tokens": given.get("max_tokens"),
                    "output_kind": kind,
                    "detokenize": bool(given["stop"]) or self.output_mode == "text",
                }
            )
        except (InvalidRequest, Unsupported) as error:
            message = f"sampling_params.{error.message}"
            raise type(error)(message, field="sampling_params") from None
        _check_markers(params, vocab_size)
        return params


def wire_params(params: SamplingParams, max_tokens: int) -> dict[str, Any]:
    """The parameters as `GenerateRequest` has them: those that are not the defaults."""
    values: dict[str, Any] = msgspec.to_builtins(params)
    kept = {name: v for name, v in values.items() if name not in ("type", *_INTERNAL)}
    return {**kept, "max_tokens": max_tokens}


def _check_markers(params: SamplingParams, vocab_size: int) -> None:
    """Raise InvalidRequest for markers that are no output of /render: the engine trusts them."""
    markers: list[TokenMarker] = []
    tokens: list[int] = []
    constraint, limits = params.structured_outputs, params.reasoning_limits
    if constraint is not None:
        markers += constraint.start_after or ()
        tokens += (constraint.special_tokens or {}).values()
        if not 0 <= constraint.num_written <= 2**20:
            raise InvalidRequest(
                "sampling_params: structured_outputs.num_written must be in 0 … 1048576, got "
                f"{constraint.num_written}.",
                field="sampling_params",
            )
    if limits is not None:
        markers += (limits.start, limits.end, *(limits.parts or ()))
        tokens += limits.close
    for marker in markers:
        if len(marker.steps) > MAX_STEPS or len(marker.steps) % 12 or marker.size < 1:
            raise InvalidRequest(
                "sampling_params: a marker is malformed; send it as /render has made it.",
                field="sampling_params",
            )
        tokens += marker.ids
        tokens += (token for _, token in marker.table().steps)
    worst = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if worst is not None:
        raise InvalidRequest(
            f"sampling_params: token id {worst} is out of vocabulary (size {vocab_size}).",
            field="sampling_params",
        )


class GenerateChoice(msgspec.Struct, kw_only=True):
    """One answer; its logprobs name tokens as `token_id:N`."""

    index: int
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[TokenId] | None = None
    text: str | msgspec.UnsetType = msgspec.UNSET


class GenerateResponse(msgspec.Struct, kw_only=True):
    """The tokens of an answer, or of a part of a stream."""

    request_id: str | None = None
    model: str | None = None
    created: int | None = None
    choices: list[GenerateChoice]
    output_mode: Literal["tokens", "text"] = "tokens"
    usage: Usage | None = None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None
    prompt_token_ids: list[TokenId] | None = None
    kv_transfer_params: dict[str, Any] | None = None


class Derender(msgspec.Struct, kw_only=True):
    """Fields of both kinds of requests that turn tokens into an answer."""

    model: str | None = None
    stream: bool | None = False


class DerenderState(msgspec.Struct, kw_only=True):
    """The state that the client carries from one part of a stream to the next.

    Attributes:
        output_token_ids: of all parts before.
        output_chunk_lens: number of tokens of each of them.
    """

    output_token_ids: list[TokenId] = []
    output_chunk_lens: list[Count] = []

    def parts(self) -> list[list[int]]:
        """The tokens of each part. Raises InvalidRequest where the numbers do not fit."""
        if sum(self.output_chunk_lens) != len(self.output_token_ids):
            raise InvalidRequest(
                "stream_state: output_chunk_lens must add up to the number of output_token_ids.",
                field="stream_state",
            )
        ids = iter(self.output_token_ids)
        return [list(islice(ids, length)) for length in self.output_chunk_lens]


class DerenderPart(Derender, kw_only=True):
    """Fields of both kinds of requests for one part of a stream (`stream`: true).

    Attributes:
        generate_chunk: an event of /inference/v1/generate; one choice, or none with the usage.
        stream_state: that of the answer to the part before; none for the first.
    """

    generate_chunk: GenerateResponse
    stream_state: DerenderState | None = None
    prompt_tokens: Count | None = None
    prompt_token_ids: list[TokenId] | None = None

    def check(self, max_model_len: int) -> None:
        """Raise InvalidRequest for several choices, or more tokens than the model's length."""
        choices, state = self.generate_chunk.choices, self.stream_state
        if len(choices) > 1:
            raise InvalidRequest(
                f"generate_chunk must have at most one choice, got {len(choices)}.",
                field="generate_chunk",
            )
        known = [self.prompt_token_ids, *(choice.token_ids for choice in choices)]
        known.append(None if state is None else state.output_token_ids)
        total = sum(len(ids or ()) for ids in known)
        if total > max_model_len:
            raise InvalidRequest(
                f"prompt_token_ids, stream_state and generate_chunk have {total} tokens; the "
                f"model's maximum context length is {max_model_len}.",
                field="stream_state",
            )


class DerenderChatPart(DerenderPart, kw_only=True):
    """The next tokens of an answer to a conversation; `chat_request` was rendered."""

    chat_request: ChatCompletionRequest | None = None


class DerenderCompletionPart(DerenderPart, kw_only=True):
    """The next tokens of an answer to a prompt; `completion_request` was rendered."""

    completion_request: CompletionRequest | None = None


class DerenderedPart(msgspec.Struct, kw_only=True):
    """A chunk of the stream of text, as the other endpoint has it, and the state to send next."""

    chunk: dict[str, Any]
    stream_state: DerenderState


class DerenderChatRequest(Derender, kw_only=True):
    """Tokens of an answer to a conversation.

    Attributes:
        prompt_tokens: number of the prompt's tokens, for `usage`.
        prompt_token_ids: of the prompt, or its last ones: the text continues theirs.
        chat_request: the request that was rendered.
    """

    generate_response: GenerateResponse
    prompt_tokens: Count | None = None
    prompt_token_ids: list[TokenId] | None = None
    chat_request: ChatCompletionRequest | None = None


class DerenderCompletionRequest(Derender, kw_only=True):
    """Tokens of answers to prompts, one response a prompt, in their order."""

    generate_responses: list[GenerateResponse]
    prompt_tokens: list[Count] | None = None
    prompt_token_ids: list[list[TokenId]] | None = None
    completion_request: CompletionRequest | None = None

    def check_counts(self) -> None:
        """Raise InvalidRequest unless there is a prompt for each response."""
        if not self.generate_responses:
            raise InvalidRequest(
                "generate_responses must not be empty.", field="generate_responses"
            )
        for name in ("prompt_tokens", "prompt_token_ids"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.generate_responses):
                raise InvalidRequest(
                    f"{name} has {len(given)} entries, generate_responses "
                    f"{len(self.generate_responses)}.",
                    field=name,
                )


class AbortGenerateRequest(msgspec.Struct, kw_only=True):
    """Ids of the requests to end; their readers get the tokens so far."""

    request_ids: list[str]


generate_reader = BodyReader(
    GenerateRequest,
    {
        "reasoning_parser_kwargs": NoEffect(
            dict[str, Any] | None, "--reasoning-parser's format has no options"
        ),
        "ec_transfer_params": Refused("no KV connector is configured."),
    },
)
derender_chat_reader = BodyReader(DerenderChatRequest, {})
derender_completion_reader = BodyReader(DerenderCompletionRequest, {})
derender_chat_part_reader = BodyReader(DerenderChatPart, {})
derender_completion_part_reader = BodyReader(DerenderCompletionPart, {})
abort_generate_reader = BodyReader(AbortGenerateRequest, {})
