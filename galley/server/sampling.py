"""Request fields to `SamplingParams`, and the submission of a prompt to the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from galley.config.server import ServerConfig
from galley.errors import InvalidRequest
from galley.frontend.client import RequestStream
from galley.frontend.prompts import EmbedsPrompt, TokensPrompt
from galley.request import RequestOutputKind, SamplingParams, StructuredOutputsParams
from galley.server.context import Context
from galley.server.protocol.generation import GenerationFields

logger = logging.getLogger(__name__)

#: Texts of at least this many characters are tokenised in a thread: tens of thousands of tokens
#: take as long as many steps, and other streams must not wait for them.
LONG_TEXT = 8192

Prompt = str | list[int]


def sampling_params(
    request: GenerationFields,
    defaults: Mapping[str, Any],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    """Raises InvalidRequest naming the first field out of range.

    Args:
        defaults: used for fields that the request leaves out (the model's generation_config.json).
    """

    def value_of(name: str, neutral: Any) -> Any:
        value = getattr(request, name)
        return defaults.get(name, neutral) if value is None else value

    return SamplingParams(
        n=1 if request.n is None else request.n,
        presence_penalty=value_of("presence_penalty", 0.0),
        frequency_penalty=value_of("frequency_penalty", 0.0),
        repetition_penalty=value_of("repetition_penalty", 1.0),
        temperature=value_of("temperature", 1.0),
        top_p=value_of("top_p", 1.0),
        top_k=value_of("top_k", 0),
        min_p=value_of("min_p", 0.0),
        seed=request.seed,
        stop=request.stop,
        stop_token_ids=request.stop_token_ids,
        ignore_eos=request.ignore_eos,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        logprobs=None if request.logprob_token_ids else logprobs,
        prompt_logprobs=prompt_logprobs,
        logprob_token_ids=request.logprob_token_ids or None,
        skip_special_tokens=request.skip_special_tokens,
        spaces_between_special_tokens=request.spaces_between_special_tokens,
        include_stop_str_in_output=request.include_stop_str_in_output,
        output_kind=RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY,
        stream_interval=request.stream_interval,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        logit_bias=_clamped(request.logit_bias),
        allowed_token_ids=request.allowed_token_ids,
        bad_words=request.bad_words or None,
        repetition_detection=request.repetition_detection,
        structured_outputs=request.structured_params(),
        extra_args=request.vllm_xargs or None,
        speculative=request.speculative,
    )


def _clamped(bias: dict[int, float] | None) -> dict[int, float] | None:
    """OpenAI's range: ±100 bans a token or makes it the only one."""
    return bias and {i: min(max(value, -100.0), 100.0) for i, value in bias.items()}


async def start(
    ctx: Context,
    prompt: Prompt | EmbedsPrompt,
    params: SamplingParams,
    request_id: str,
    request: GenerationFields,
    add_special_tokens: bool,
) -> RequestStream:
    """Submit one prompt to the engine.

    Raises:
        InvalidRequest, Unsupported: the request cannot be served; names the field.
        Overloaded: too many requests are in flight.
        EngineDead: there is no engine and none will be started.
    """
    ctx.admit()
    _log(ctx.server, request_id, prompt, params)
    form, params = await checked(ctx, prompt, params, request, add_special_tokens)
    stream = ctx.engine.generate(
        form, params, request_id, **submission_options(ctx, request, add_special_tokens)
    )
    if ctx.output_log is not None:
        ctx.output_log.follow(stream.state)
    return stream


def submission_options(
    ctx: Context, request: GenerationFields, add_special_tokens: bool
) -> dict[str, Any]:
    """The arguments with which a request's prompt is submitted."""
    return {
        "priority": request.priority,
        "add_special_tokens": add_special_tokens,
        "truncation_side": request.truncation_side or "left",
        "adapter": ctx.adapter(request.model),
    }


async def checked(
    ctx: Context,
    prompt: Prompt | EmbedsPrompt,
    params: SamplingParams,
    request: GenerationFields,
    add_special_tokens: bool,
) -> tuple[TokensPrompt, SamplingParams]:
    """The prompt in the form in which it is submitted, and its parameters under the server's
    limits. Long work is done in a thread. Raises InvalidRequest, Unsupported naming the field.
    """
    ids = prompt if isinstance(prompt, list) else None
    params = _limited(ctx, params)
    _check_bad_words(ctx, params)
    if params.structured_outputs is not None:
        await check_constraint(ctx, params.structured_outputs, request)
    if isinstance(prompt, str) and len(prompt) >= LONG_TEXT and ctx.tokenizer is not None:
        if params.truncate_prompt_tokens is None:
            _check_length(ctx, prompt)
        ids = await asyncio.to_thread(ctx.tokenizer.encode, prompt, add_special_tokens)
    engine_prompt: dict[str, Any] = {} if ids is None else {"prompt_token_ids": ids}
    if isinstance(prompt, dict):
        engine_prompt.update(prompt)
    if isinstance(prompt, str):
        engine_prompt["prompt"] = prompt
    if request.cache_salt is not None:
        engine_prompt["cache_salt"] = request.cache_salt
    return cast(TokensPrompt, engine_prompt), params


async def check_constraint(
    ctx: Context, constraint: StructuredOutputsParams, request: GenerationFields
) -> None:
    """Raise InvalidRequest for a constraint that cannot be compiled, with the request's field.

    A constraint that no field asks for is that of the tools.
    """
    try:
        await ctx.engine.check_constraint(constraint)
    except InvalidRequest as error:
        field = request.constraint_field or "tools"
        raise InvalidRequest(error.message, field=field) from None


def _check_length(ctx: Context, text: str) -> None:
    """Refuse a text that cannot fit, without tokenising it, which would take seconds."""
    length = ctx.engine.limits.max_model_len
    least = len(text) // ctx.longest_token
    if least > length:
        raise InvalidRequest(
            f"This model's maximum context length is {length} tokens, but the prompt has at "
            f"least {least} tokens. Please reduce the length of the input prompt.",
            field="prompt",
        )


def _check_bad_words(ctx: Context, params: SamplingParams) -> None:
    if not params.bad_words or ctx.tokenizer is None:
        return
    total = sum(len(ctx.tokenizer.encode(word, False)) for word in params.bad_words)
    if total > ctx.caps.bad_words_tokens:
        raise InvalidRequest(
            f"bad_words are limited to {ctx.caps.bad_words_tokens} tokens in all, got {total}.",
            field="bad_words",
        )


def _limited(ctx: Context, params: SamplingParams) -> SamplingParams:
    """`params` with the server's maximum: the model's default if the request names none, and at
    most the operator's (`max_new_tokens` of --override-generation-config).

    Raises InvalidRequest where `min_tokens` is above it.
    """
    length, max_tokens = ctx.engine.limits.max_model_len, params.max_tokens
    if max_tokens is None:
        default = ctx.defaults.get("max_tokens")
        max_tokens = None if default is None else min(default, length)
    if ctx.max_tokens_cap is not None and (max_tokens is None or max_tokens <= length):
        max_tokens = (
            ctx.max_tokens_cap if max_tokens is None else min(max_tokens, ctx.max_tokens_cap)
        )
    if max_tokens == params.max_tokens:
        return params
    return msgspec.structs.replace(params, max_tokens=max_tokens)


def _log(
    server: ServerConfig,
    request_id: str,
    prompt: Prompt | EmbedsPrompt,
    params: SamplingParams,
) -> None:
    """Log a request with its prompt cut to `max_log_len` characters or token ids."""
    if not server.enable_log_requests:
        return
    shown = "embeddings" if isinstance(prompt, dict) else prompt[: server.max_log_len]
    logger.info(
        "Received request %s: prompt: %r, params: %s",
        request_id,
        shown,
        msgspec.json.encode(params).decode(),
    )
