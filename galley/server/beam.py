"""Beam search behind the generation endpoints: one request a beam and token."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from galley.errors import InvalidRequest
from galley.frontend.beam_search import Beam, BeamSearch, BeamSearchParams
from galley.frontend.prompts import TokensPrompt
from galley.outputs import CompletionOutput, RequestOutput
from galley.request import SamplingParams
from galley.server.context import Context
from galley.server.protocol.generation import GenerationFields
from galley.server.sampling import Prompt, check_constraint
from galley.server.stream import OutputStream, collect, start_all

#: Fields that beam search does not support, and their neutral values.
_NEUTRAL = GenerationFields()
_UNSUPPORTED = (
    *("stream", "echo", "stop", "stop_token_ids", "min_tokens", "logit_bias", "allowed_token_ids"),
    *("bad_words", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("prompt_logprobs", "truncate_prompt_tokens", "top_p", "top_k", "min_p"),
    "vllm_xargs",
)


async def search_all(
    ctx: Context,
    prompts: Sequence[Prompt],
    request: GenerationFields,
    names: Sequence[str],
    *,
    max_tokens: int | None,
    add_special_tokens: bool,
) -> list[RequestOutput]:
    """The answers of each prompt; all prompts are searched concurrently. Raises InvalidRequest."""
    tasks = [
        asyncio.ensure_future(
            search(
                *(ctx, prompt, request, name),
                max_tokens=max_tokens,
                add_special_tokens=add_special_tokens,
            )
        )
        for prompt, name in zip(prompts, names, strict=True)
    ]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def search(
    ctx: Context,
    prompt: Prompt,
    request: GenerationFields,
    name: str,
    *,
    max_tokens: int | None,
    add_special_tokens: bool,
) -> RequestOutput:
    """The `n` most likely answers.

    Raises:
        InvalidRequest: an unsupported field, or a value out of range; names it.
    """
    for field in _UNSUPPORTED:
        value, neutral = getattr(request, field), getattr(_NEUTRAL, field)
        if value != neutral and value not in (None, [], {}):
            raise InvalidRequest(f"{field} is not available with beam search.", field=field)
    ctx.admit()
    limits = ctx.engine.limits
    ids = prompt
    if isinstance(ids, str):
        text, tokenizer = ids, ctx.require_tokenizer()
        ids = await asyncio.to_thread(tokenizer.encode, text, add_special_tokens)
    limits.check_max_tokens(max_tokens)
    room = max(limits.max_model_len - len(ids), 1)
    width = request.n or 1
    if 2 * width > limits.max_logprobs != -1:
        raise InvalidRequest(
            f"beam search of width n={width} looks at {2 * width} candidates a token, which is "
            f"more than the {limits.max_logprobs} allowed (--max-logprobs).",
            field="n",
        )
    constraint = request.structured_params()
    if constraint is not None:
        await check_constraint(ctx, constraint, request)
    params = BeamSearchParams(
        beam_width=width,
        max_tokens=room if max_tokens is None else min(max_tokens, room),
        ignore_eos=request.ignore_eos,
        length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
        include_stop_str_in_output=request.include_stop_str_in_output,
        structured_outputs=constraint,
    )
    beams = BeamSearch(ids, params, limits.eos_token_ids)
    cached = 0
    while not beams.done:
        outputs = await collect(await start_all(_steps(ctx, beams, request, name)))
        beams.advance([(output.outputs[0].logprobs or [{}])[0] for output in outputs])
        cached = cached or outputs[0].num_cached_tokens or 0
    return RequestOutput(
        request_id=name,
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=ids,
        outputs=[_output(ctx, ids, i, beam, request) for i, beam in enumerate(beams.best())],
        finished=True,
        num_cached_tokens=cached,
    )


def _steps(
    ctx: Context, beams: BeamSearch, request: GenerationFields, name: str
) -> list[Coroutine[Any, Any, OutputStream]]:
    """A request for the next token of each beam."""

    async def step(ids: list[int], params: SamplingParams, number: int) -> OutputStream:
        engine_prompt: TokensPrompt = {"prompt_token_ids": ids}
        if request.cache_salt is not None:
            engine_prompt["cache_salt"] = request.cache_salt
        return ctx.engine.generate(
            engine_prompt,
            params,
            f"{name}-beam-{number}",
            priority=request.priority,
            adapter=ctx.adapter(request.model),
        )

    pairs = zip(beams.prompts, beams.step_params(), strict=True)
    return [step(ids, params, i) for i, (ids, params) in enumerate(pairs)]


def _output(
    ctx: Context, prompt: list[int], index: int, beam: Beam, request: GenerationFields
) -> CompletionOutput:
    shown = SamplingParams(
        skip_special_tokens=request.skip_special_tokens,
        spaces_between_special_tokens=request.spaces_between_special_tokens,
    )
    text = ""
    if ctx.tokenizer is not None:
        stream = ctx.tokenizer.stream(prompt, shown)
        text = "".join([*map(stream.push, beam.token_ids), stream.finish()])
    return CompletionOutput(
        index=index,
        text=text,
        token_ids=list(beam.token_ids),
        cumulative_logprob=beam.cumulative_logprob,
        logprobs=list(beam.candidates),
        finish_reason="length" if beam.stop_id is None else "stop",
    )
