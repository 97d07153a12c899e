"""Wire types of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from galley.errors import InvalidRequest
from galley.server.protocol.base import BodyReader, PerRequestMetrics, PromptLogprob, TokenId, Usage
from galley.server.protocol.fields import COMPLETION
from galley.server.protocol.generation import (
    Caps,
    Count,
    CountOrAll,
    GenerationFields,
    check_generation,
)

DEFAULT_MAX_TOKENS = 16
#: Schemas of the values that `_prompts` accepts.
_PROMPTS = [
    {"type": "string", "minLength": 1},
    {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
    {"type": "array", "minItems": 1, "items": {"type": "integer"}},
    {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1}},
]
Prompt = Annotated[
    str | list[str | TokenId | list[TokenId]],
    msgspec.Meta(extra_json_schema={"allOf": [{"anyOf": _PROMPTS}]}),
]


class CompletionRequest(GenerationFields, kw_only=True):
    """Continue a prompt, or several.

    `prompt` is a text, a list of texts, a list of token ids, or a list of lists of token ids.
    `prompt_embeds` are base64 files of `torch.save`, each with the embedding rows of a prompt; they
    come before the prompts of `prompt`, which may then be left out.
    `max_tokens` null means the default.
    """

    prompt: Prompt | None = None
    prompt_embeds: str | list[str] | None = None
    max_tokens: Count | None = DEFAULT_MAX_TOKENS
    suffix: str | None = None
    logprobs: CountOrAll | None = None
    add_special_tokens: bool = True
    kv_transfer_params: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is None:
            self.max_tokens = DEFAULT_MAX_TOKENS


reader = BodyReader(CompletionRequest, COMPLETION)


def check_completion(request: CompletionRequest, caps: Caps) -> list[str | list[int]]:
    """The prompts of a request, each a text or token ids.

    Raises:
        InvalidRequest: names the field at fault.
    """
    check_generation(request, caps)
    if request.logprobs is not None and request.logprobs < -1:
        raise InvalidRequest("`logprobs` must be a non-negative value or -1.", field="logprobs")
    if request.logprob_token_ids:
        if request.logprobs is None:
            raise InvalidRequest(
                "when using `logprob_token_ids`, `logprobs` must be set.",
                field="logprob_token_ids",
            )
        if request.echo and request.max_tokens == 0:
            raise InvalidRequest(
                "`logprob_token_ids` is not supported when `echo=True` and `max_tokens=0` because "
                "no output tokens are generated.",
                field="logprob_token_ids",
            )
    if request.prompt_embeds is None:
        if not request.prompt:
            raise InvalidRequest(
                "Either prompt or prompt_embeds must be provided and non-empty.", field="prompt"
            )
        return _prompts(request.prompt, caps)
    for name in ("echo", "suffix", "use_beam_search"):
        if getattr(request, name):
            raise InvalidRequest(
                f"`{name}` is not available with `prompt_embeds`.", field="prompt_embeds"
            )
    return _prompts(request.prompt, caps) if request.prompt else []


def embeds_of(request: CompletionRequest, caps: Caps) -> list[str]:
    """The base64 files of a request. Raises InvalidRequest if there are none or too many."""
    given = request.prompt_embeds
    files = [given] if isinstance(given, str) else list(given or ())
    if given is not None and not 1 <= len(files) <= caps.prompts:
        raise InvalidRequest(
            f"prompt_embeds must be 1 to {caps.prompts} tensors, got {len(files)}.",
            field="prompt_embeds",
        )
    return files


def _prompts(prompt: Any, caps: Caps) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [prompt]
    if len(kinds) > 1:
        raise InvalidRequest(
            "prompt must be a text, a list of texts, token ids, or a list of token-id lists; "
            "it cannot be a mixture.",
            field="prompt",
        )
    if len(prompt) > caps.prompts:
        raise InvalidRequest(
            f"prompt is limited to {caps.prompts} prompts a call, got {len(prompt)}.",
            field="prompt",
        )
    return list(prompt)


class CompletionLogprobs(msgspec.Struct):
    """Per token: its text, log-probability, candidates, and offset in the answer's text."""

    text_offset: list[int] = []
    token_logprobs: list[float | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] = []


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None
    prompt_token_ids: list[int] | None = None
    seed: int | msgspec.UnsetType | None = msgspec.UNSET


class CompletionResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: Usage
    metrics: PerRequestMetrics | None = None
    kv_transfer_params: dict[str, Any] | None = None
