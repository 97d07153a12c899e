"""/v1/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from galley.frontend.prompts import EmbedsPrompt
from galley.request import SamplingParams
from galley.server.beam import search_all
from galley.server.completion_builder import CompletionResponseBuilder
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.embeds import read_embeds
from galley.server.errors import json_response
from galley.server.load_report import load_report
from galley.server.protocol.completions import (
    CompletionRequest,
    CompletionResponse,
    check_completion,
    embeds_of,
    reader,
)
from galley.server.rendering import infill_prompt
from galley.server.response_builder import ResponseHeader
from galley.server.router import GENERATION_ERRORS, Router
from galley.server.sampling import Prompt, sampling_params, start
from galley.server.stream import (
    OutputStream,
    collect,
    start_all,
    until_disconnect,
)


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post(
        "/v1/completions",
        reader,
        response=CompletionResponse,
        streams=True,
        errors=GENERATION_ERRORS,
    )
    async def create_completion(raw: Request) -> Response:
        """Continue a prompt, or several; `stream` sends the text as it comes."""
        return await respond(ctx, raw, await ctx.body(raw))

    return router


async def respond(ctx: Context, raw: Request, body: bytes) -> Response:
    """The answer to a completion request with this body. Raises ClientError, ServerError."""
    request = ctx.parse(raw, reader, body)
    apply_priority_header(raw, request)
    prompts: list[Prompt] = check_completion(request, ctx.caps)
    embeds = await read_embeds(ctx, embeds_of(request, ctx.caps))
    head = ResponseHeader(
        request_id(raw, "cmpl", request.request_id, ctx.caps.request_id),
        await ctx.model_name(request.model),
        ctx.fingerprint(),
    )
    if request.suffix:
        prompts = [infill_prompt(ctx, p, request.suffix) for p in prompts]
    echo_only = bool(request.echo) and request.max_tokens == 0
    answer = CompletionResponseBuilder(
        head,
        request,
        ctx.usage_counter(count_generated=not echo_only),
        text_of=lambda ids: ctx.require_tokenizer().decode(ids, False),
        as_ids=ctx.token_ids_for_texts(request.return_tokens_as_token_ids),
        force_usage=ctx.server.enable_force_include_usage,
    )
    if request.use_beam_search:
        searching = search_all(
            *(ctx, prompts, request, [f"{head.id}-{i}" for i in range(len(prompts))]),
            max_tokens=request.max_tokens,
            add_special_tokens=request.add_special_tokens,
        )
        return json_response(
            answer.whole(await until_disconnect(raw.receive, searching)),
            headers=load_report(raw, ctx.metrics),
        )
    starting = _start(ctx, request, [*embeds, *prompts], head.id)
    streams = await until_disconnect(raw.receive, starting)
    if request.stream:
        return ctx.events(streams, answer)
    outputs = await until_disconnect(raw.receive, collect(streams))
    return json_response(answer.whole(outputs), headers=load_report(raw, ctx.metrics))


async def _start(
    ctx: Context, request: CompletionRequest, prompts: list[Prompt | EmbedsPrompt], id: str
) -> list[OutputStream]:
    """Hand all prompts to the engine."""
    params = completion_params(ctx, request)
    special = request.add_special_tokens
    return await start_all(
        start(ctx, prompt, params, f"{id}-{i}", request, special)
        for i, prompt in enumerate(prompts)
    )


def completion_params(ctx: Context, request: CompletionRequest) -> SamplingParams:
    """How the prompts are continued."""
    logprobs = request.logprobs
    prompt_logprobs = request.prompt_logprobs
    if request.echo and prompt_logprobs is None:
        prompt_logprobs = logprobs
    return sampling_params(
        request,
        ctx.defaults,
        max_tokens=1 if request.echo and request.max_tokens == 0 else request.max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )
