"""Routes between a front end without an engine and an engine that is given token ids:
render, derender, /inference/v1/generate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from galley.chat.parts import AssistantParser
from galley.errors import Forbidden, InvalidRequest
from galley.request import SamplingParams
from galley.server.chat_builder import ChatResponseBuilder
from galley.server.completion_builder import CompletionResponseBuilder
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.derender import check_ids, check_response, output_of, outputs_of_parts
from galley.server.errors import json_response
from galley.server.protocol import anthropic, chat, completions, responses
from galley.server.protocol.base import BodyReader, ErrorResponse
from galley.server.protocol.generation import GenerationFields
from galley.server.protocol.scale_out import (
    DerenderChatPart,
    DerenderChatRequest,
    DerenderCompletionPart,
    DerenderCompletionRequest,
    DerenderedPart,
    DerenderPart,
    DerenderState,
    GenerateRequest,
    GenerateResponse,
    abort_generate_reader,
    derender_chat_part_reader,
    derender_chat_reader,
    derender_completion_part_reader,
    derender_completion_reader,
    generate_reader,
    wire_params,
)
from galley.server.rendering import infill_prompt
from galley.server.response_builder import ResponseHeader, UsageCounter, to_json
from galley.server.response_store import ResponseStore
from galley.server.router import GENERATION_ERRORS, MODEL_ERRORS, QUERY_ERRORS, Errors, Router
from galley.server.routes.anthropic import rendered_message
from galley.server.routes.chat import answer_role, chat_params, prompt_of, tool_use_of
from galley.server.routes.completions import completion_params
from galley.server.routes.responses import ResponsesHandler
from galley.server.sampling import Prompt, checked, start, submission_options
from galley.server.stream import collect, until_disconnect
from galley.server.token_builder import TokenResponseBuilder
from galley.server.tool_use import ToolUse, constrained

_RENDER_ERRORS: Errors = {**MODEL_ERRORS, 403: ErrorResponse}
_GENERATE_ERRORS: Errors = {**GENERATION_ERRORS, 403: ErrorResponse}


def routes(ctx: Context) -> Router:
    router = Router()
    if not (ctx.server.enable_scale_out or ctx.server.tokens_only or ctx.renders_only):
        _stubs(router)
        return router
    if not ctx.server.tokens_only:
        _render(router, ctx)
        _derender(router, ctx)
    if not ctx.renders_only:
        _generate(router, ctx)
    return router


def _stubs(router: Router) -> None:
    """Refuse every path by naming the flag that opens it."""
    for path in (
        "/v1/chat/completions/render",
        "/v1/completions/render",
        "/v1/responses/render",
        "/v1/messages/render",
        "/v1/chat/completions/derender",
        "/v1/completions/derender",
        "/inference/v1/generate",
        "/inference/v1/abort_requests",
    ):

        @router.post(path, hidden=True)
        async def closed(raw: Request) -> Response:
            raise Forbidden(
                f"{raw.url.path} is closed: start with --enable-scale-out, or use "
                "`galley launch render`."
            )


# ---------------------------------------------------------------------------- render


def _render(router: Router, ctx: Context) -> None:
    handler = ResponsesHandler(ctx, ResponseStore())

    @router.post(
        "/v1/chat/completions/render", chat.reader, response=GenerateRequest, errors=_RENDER_ERRORS
    )
    async def render_chat_completion(raw: Request) -> Response:
        """Token ids and parameters of a chat request, for /inference/v1/generate."""
        request = await ctx.read(raw, chat.reader)
        apply_priority_header(raw, request)
        chat.check_chat(request, ctx.caps)
        _refuse_beams(request)
        model = await ctx.model_name(request.model)
        id = request_id(raw, "chatcmpl", request.request_id, ctx.caps.request_id)
        use = tool_use_of(ctx, request)
        prompt = await prompt_of(ctx, request, request.messages, use)
        params = await chat_params(ctx, request, prompt, ctx.parsers(prompt, 1, use), use)
        special = request.add_special_tokens
        rendered = await _rendered(ctx, prompt, params, request, id, model, special)
        rendered.kv_transfer_params = request.kv_transfer_params
        return json_response(to_json(rendered))

    @router.post(
        "/v1/completions/render",
        completions.reader,
        response=list[GenerateRequest],
        errors=_RENDER_ERRORS,
    )
    async def render_completion(raw: Request) -> Response:
        """Token ids and parameters of each prompt of a completion request."""
        request = await ctx.read(raw, completions.reader)
        apply_priority_header(raw, request)
        prompts: list[Prompt] = completions.check_completion(request, ctx.caps)
        _refuse_beams(request)
        if request.echo:
            raise InvalidRequest("`echo` is not available for rendered prompts.", field="echo")
        model = await ctx.model_name(request.model)
        id = request_id(raw, "cmpl", request.request_id, ctx.caps.request_id)
        if request.suffix:
            prompts = [infill_prompt(ctx, prompt, request.suffix) for prompt in prompts]
        params = completion_params(ctx, request)
        special = request.add_special_tokens
        all_rendered = []
        for i, prompt in enumerate(prompts):
            rendered = await _rendered(ctx, prompt, params, request, f"{id}-{i}", model, special)
            rendered.kv_transfer_params = request.kv_transfer_params
            all_rendered.append(rendered)
        return json_response(to_json(all_rendered))

    @router.post(
        "/v1/responses/render", responses.reader, response=GenerateRequest, errors=_RENDER_ERRORS
    )
    async def render_response(raw: Request) -> Response:
        """Token ids and parameters of a response request."""
        request = await ctx.read(raw, responses.reader)
        apply_priority_header(raw, request)
        model = await ctx.model_name(request.model)
        id = request_id(raw, "resp", request.request_id, ctx.caps.request_id)
        made = await handler.render(request)
        rendered = await _rendered(ctx, made.prompt, made.params, made.fields, id, model, False)
        return json_response(to_json(rendered))

    @router.post(
        "/v1/messages/render",
        anthropic.messages_reader,
        response=GenerateRequest,
        errors=_RENDER_ERRORS,
    )
    async def render_message(raw: Request) -> Response:
        """Token ids and parameters of a request of Anthropic's API."""
        request = await ctx.read(raw, anthropic.messages_reader)
        fields = request.generation(ctx.caps)
        apply_priority_header(raw, fields)
        model = await ctx.model_name(request.model)
        id = request_id(raw, "msg", None, ctx.caps.request_id)
        prompt, params, _ = await rendered_message(ctx, request, fields)
        rendered = await _rendered(ctx, prompt, params, fields, id, model, False)
        return json_response(to_json(rendered))


def _refuse_beams(request: GenerationFields) -> None:
    if request.use_beam_search:
        raise InvalidRequest(
            "`use_beam_search` is not available for rendered prompts.", field="use_beam_search"
        )


async def _rendered(
    ctx: Context,
    prompt: Prompt,
    params: SamplingParams,
    request: GenerationFields,
    id: str,
    model: str,
    add_special_tokens: bool,
) -> GenerateRequest:
    """The body for which /inference/v1/generate answers as the route of `request` would."""
    form, params = await checked(ctx, prompt, params, request, add_special_tokens)
    options = submission_options(ctx, request, add_special_tokens)
    ids = ctx.engine.prepare(form, params, id, **options).prompt_token_ids
    offsets = None
    if request.return_token_offsets and isinstance(prompt, str):
        found = ctx.require_tokenizer().offsets(prompt, add_special_tokens)
        offsets = found if len(found) == len(ids) else None  # else the prompt was truncated
    room = ctx.engine.limits.max_model_len - len(ids)
    params = msgspec.structs.replace(params, truncate_prompt_tokens=None)
    return GenerateRequest(
        request_id=id,
        token_ids=ids,
        token_offsets=offsets,
        sampling_params=wire_params(params, min(params.max_tokens or room, room)),
        model=model,
        reasoning_ended=True,
        return_token_ids=request.return_token_ids,
        stream=request.stream,
        stream_options=request.stream_options,
        cache_salt=request.cache_salt,
        priority=request.priority,
    )


# ---------------------------------------------------------------------------- generate


def _generate(router: Router, ctx: Context) -> None:
    @router.post(
        "/inference/v1/generate",
        generate_reader,
        response=GenerateResponse,
        streams=True,
        errors=_GENERATE_ERRORS,
    )
    async def generate_tokens(raw: Request) -> Response:
        """Continue token ids; the answer is token ids."""
        request = await ctx.read(raw, generate_reader)
        model = await ctx.model_name(request.model)
        id = request.request_id or request_id(raw, "generate-tokens", None, ctx.caps.request_id)
        if len(id) > ctx.caps.request_id:
            raise InvalidRequest(
                f"request_id is limited to {ctx.caps.request_id} characters.", field="request_id"
            )
        fields = request.fields()
        apply_priority_header(raw, fields)
        params = request.params(ctx.engine.limits.vocab_size)
        if not request.reasoning_ended and ctx.formats is not None and ctx.tokenizer is not None:
            check_ids(ctx, request.token_ids, "token_ids")
            prompt = ctx.tokenizer.decode(request.token_ids, False)
            params = await constrained(ctx, params, prompt, ToolUse())
        top = None if params.logprob_token_ids else params.logprobs or 0
        answer = TokenResponseBuilder(
            ResponseHeader(id, model, None),
            request,
            ctx.usage_counter(),
            top,
            ctx.server.enable_force_include_usage,
        )
        starting = start(ctx, request.token_ids, params, id, fields, False)
        stream = await until_disconnect(raw.receive, starting)
        if request.stream:
            return ctx.events([stream], answer)
        [output] = await until_disconnect(raw.receive, collect([stream]))
        return json_response(answer.whole(output))

    paths = ["/inference/v1/abort_requests"]
    if ctx.server.tokens_only and not ctx.dev_mode:
        paths.append("/abort_requests")
    for path in paths:

        @router.post(path, abort_generate_reader, errors={**_RENDER_ERRORS, **QUERY_ERRORS})
        async def abort_generate_requests(raw: Request) -> Response:
            """Abort requests by their ids; their readers get the tokens so far."""
            request = await ctx.read(raw, abort_generate_reader)
            await ctx.engine.call("abort_all", request.request_ids)
            return Response(status_code=200)


# ---------------------------------------------------------------------------- derender


def _derender(router: Router, ctx: Context) -> None:
    @router.post(
        "/v1/chat/completions/derender",
        (derender_chat_reader, derender_chat_part_reader),
        response=(chat.ChatCompletionResponse, DerenderedPart),
        errors=_RENDER_ERRORS,
    )
    async def derender_chat_completion(raw: Request) -> Response:
        """The answer to a chat request from the tokens of /inference/v1/generate; with `stream`, a
        chunk of it from an event.
        """
        request = await _read_either(ctx, raw, derender_chat_reader, derender_chat_part_reader)
        model = await ctx.model_name(request.model)
        if isinstance(request, DerenderChatPart):
            return json_response(await _chat_part(ctx, request, model))
        check_response(ctx, request.generate_response)
        return json_response(await _chat_answer(ctx, request, model))

    @router.post(
        "/v1/completions/derender",
        (derender_completion_reader, derender_completion_part_reader),
        response=(completions.CompletionResponse, DerenderedPart),
        errors=_RENDER_ERRORS,
    )
    async def derender_completion(raw: Request) -> Response:
        """The answer to a completion request from the tokens of /inference/v1/generate; with
        `stream`, a chunk of it from an event.
        """
        request = await _read_either(
            ctx, raw, derender_completion_reader, derender_completion_part_reader
        )
        model = await ctx.model_name(request.model)
        if isinstance(request, DerenderCompletionPart):
            return json_response(await _completion_part(ctx, request, model))
        request.check_counts()
        for response in request.generate_responses:
            check_response(ctx, response)
        return json_response(await _completion_answer(ctx, request, model))


class _Streams(msgspec.Struct):
    stream: bool | None = False


_streams = msgspec.json.Decoder(_Streams)
Whole = TypeVar("Whole", DerenderChatRequest, DerenderCompletionRequest)
Part = TypeVar("Part", DerenderChatPart, DerenderCompletionPart)


async def _read_either(
    ctx: Context, raw: Request, whole: BodyReader[Whole], part: BodyReader[Part]
) -> Whole | Part:
    """The body as what `stream` says that it is."""
    body = await ctx.body(raw)
    try:
        streams = _streams.decode(body).stream
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        streams = False  # the reader says what is wrong with it
    return ctx.parse(raw, part, body) if streams else ctx.parse(raw, whole, body)


async def _chat_answer(ctx: Context, request: DerenderChatRequest, model: str) -> bytes:
    response = request.generate_response
    prompt_ids = _prompt_ids(ctx, request.prompt_token_ids, response)
    answer, params = await _chat_builder(
        ctx, response, request.chat_request, request.prompt_tokens, model
    )
    output = await asyncio.to_thread(output_of, ctx, response, params, prompt_ids)
    body = msgspec.json.decode(answer.whole([output]))
    if response.prompt_logprobs is not None:
        body["prompt_logprobs"] = _named(ctx, response)
    return to_json(body)


async def _chat_builder(
    ctx: Context,
    response: GenerateResponse,
    given: chat.ChatCompletionRequest | None,
    prompt_tokens: int | None,
    model: str,
) -> tuple[ChatResponseBuilder, SamplingParams]:
    """The builder of the answer to `given`, and how its tokens become text."""
    if given is None and ctx.formats is not None:
        raise InvalidRequest(
            "chat_request is needed: this server reads tool calls or reasoning.",
            field="chat_request",
        )
    chat_request = given or chat.ChatCompletionRequest(messages=[{"role": "user"}])
    chat.check_chat(chat_request, ctx.caps)
    use = tool_use_of(ctx, chat_request)
    prompt = "" if given is None else await prompt_of(ctx, given, given.messages, use)
    parsers = ctx.parsers(prompt, len(response.choices), use)
    params = await chat_params(ctx, chat_request, prompt, parsers, use)
    shown = msgspec.structs.replace(
        chat_request,
        n=len(response.choices),
        kv_transfer_params=response.kv_transfer_params,
        **_asked(response, bool(chat_request.logprobs), "top_logprobs", {"logprobs": True}),
    )
    answer = ChatResponseBuilder(
        _header(ctx, response, model),
        shown,
        _counter(ctx, [prompt_tokens], parsers),
        roles=[answer_role(ctx, shown, shown.messages)],
        bytes_of=lambda token_id: ctx.require_tokenizer().token_bytes(token_id),
        parsers=parsers or None,
        prompt_text=prompt if shown.return_prompt_text else None,
        as_ids=ctx.token_ids_for_texts(shown.return_tokens_as_token_ids),
    )
    return answer, params


def _header(ctx: Context, response: GenerateResponse, model: str) -> ResponseHeader:
    head = ResponseHeader(response.request_id or "", model, ctx.fingerprint())
    return head if response.created is None else replace(head, created=response.created)


async def _chat_part(ctx: Context, request: DerenderChatPart, model: str) -> bytes:
    """The chunk of a part: those before are read again, for what a parser keeps of them."""
    response = request.generate_chunk
    earlier, prompt_ids = _checked_part(ctx, request)
    answer, params = await _chat_builder(
        ctx, response, request.chat_request, request.prompt_tokens, model
    )
    return await asyncio.to_thread(
        _derendered,
        ctx,
        request,
        answer,
        earlier,
        params,
        prompt_ids,
        _header(ctx, response, model),
    )


async def _completion_part(ctx: Context, request: DerenderCompletionPart, model: str) -> bytes:
    response = request.generate_chunk
    earlier, prompt_ids = _checked_part(ctx, request)
    given = request.completion_request or completions.CompletionRequest(prompt=[0])
    completions.check_completion(given, ctx.caps)
    brought: dict[str, Any] = {"logprobs": None, **_asked(response, None, "logprobs", {})}
    shown = msgspec.structs.replace(given, n=1, echo=False, **brought)
    head = _header(ctx, response, model)
    as_ids = ctx.token_ids_for_texts(shown.return_tokens_as_token_ids)
    decode = ctx.require_tokenizer().decode_token
    before = (f"token_id:{i}" if as_ids else decode(i) for ids in earlier for i in ids)
    answer = CompletionResponseBuilder(
        head,
        shown,
        _counter(ctx, [request.prompt_tokens]),
        text_of=lambda ids: ctx.require_tokenizer().decode(ids, False),
        as_ids=as_ids,
        offset=0 if shown.logprobs is None else sum(map(len, before)),
    )
    params = completion_params(ctx, given)
    return await asyncio.to_thread(
        _derendered, ctx, request, answer, earlier, params, prompt_ids, head
    )


def _checked_part(ctx: Context, request: DerenderPart) -> tuple[list[list[int]], list[int]]:
    """Tokens of the parts before, and those of the prompt. Raises InvalidRequest."""
    request.check(ctx.engine.limits.max_model_len)
    earlier = [] if request.stream_state is None else request.stream_state.parts()
    for ids in earlier:
        check_ids(ctx, ids, "stream_state")
    for choice in request.generate_chunk.choices:
        check_ids(ctx, choice.token_ids or (), "generate_chunk")
    return earlier, _prompt_ids(ctx, request.prompt_token_ids, request.generate_chunk)


def _derendered(
    ctx: Context,
    request: DerenderPart,
    answer: ChatResponseBuilder | CompletionResponseBuilder,
    earlier: list[list[int]],
    params: SamplingParams,
    prompt_ids: list[int],
    head: ResponseHeader,
) -> bytes:
    response, events = request.generate_chunk, b""
    is_chat = isinstance(answer, ChatResponseBuilder)
    for choice in response.choices:
        outputs = outputs_of_parts(ctx, earlier, choice, params, prompt_ids)
        for output in outputs if is_chat else outputs[-1:]:
            events = answer.encode(0, output)
        earlier = [*earlier, choice.token_ids or []]
    chunk = _one_chunk(events)
    if chunk is None:  # no text yet, or the part with the usage
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        chunk = msgspec.json.decode(head.chunk_prefix(kind)[len(b"data: ") :] + b"]}")
    for shown, choice in zip(chunk["choices"], response.choices, strict=False):
        shown["index"] = choice.index
    if response.usage is not None:
        chunk["usage"] = response.usage
    state = DerenderState(
        output_token_ids=[token for ids in earlier for token in ids],
        output_chunk_lens=[len(ids) for ids in earlier],
    )
    return to_json(DerenderedPart(chunk=chunk, stream_state=state))


def _one_chunk(events: bytes) -> dict[str, Any] | None:
    """The events of one part of a stream (the role and the first text) as one; None: there are
    none.
    """
    found = [msgspec.json.decode(line[6:]) for line in events.split(b"\n\n") if line]
    if not found:
        return None
    *before, last = found
    for event in before:
        choice = last["choices"][0]
        choice["delta"] = {**event["choices"][0]["delta"], **choice["delta"]}
        last = {**event, **last}
    return dict(last)


async def _completion_answer(ctx: Context, request: DerenderCompletionRequest, model: str) -> bytes:
    given = request.completion_request or completions.CompletionRequest(prompt=[0])
    completions.check_completion(given, ctx.caps)
    responses = request.generate_responses
    params = completion_params(ctx, given)
    outputs = []
    for i, response in enumerate(responses):
        ids = None if request.prompt_token_ids is None else request.prompt_token_ids[i]
        prompt_ids = _prompt_ids(ctx, ids, response)
        outputs.append(await asyncio.to_thread(output_of, ctx, response, params, prompt_ids))
    transfer = responses[0].kv_transfer_params
    if any(response.kv_transfer_params != transfer for response in responses):
        transfer = None
    shown = msgspec.structs.replace(
        given,
        n=max(len(response.choices) for response in responses),
        echo=False,
        kv_transfer_params=transfer,
        **_asked(responses[0], given.logprobs is not None, "logprobs", {}),
    )
    counts: Sequence[int | None] = request.prompt_tokens or [None] * len(responses)
    answer = CompletionResponseBuilder(
        _header(ctx, responses[0], model),
        shown,
        _counter(ctx, counts),
        text_of=lambda ids: ctx.require_tokenizer().decode(ids, False),
        as_ids=ctx.token_ids_for_texts(shown.return_tokens_as_token_ids),
    )
    return answer.whole(outputs)


def _prompt_ids(ctx: Context, given: list[int] | None, response: GenerateResponse) -> list[int]:
    ids = given or response.prompt_token_ids or []
    check_ids(ctx, ids, "prompt_token_ids")
    return ids


def _asked(
    response: GenerateResponse, asked: bool | None, name: str, more: dict[str, Any]
) -> dict[str, Any]:
    """Fields of a request that asks for the logprobs that a response brings."""
    found = [choice.logprobs for choice in response.choices if choice.logprobs is not None]
    if asked or not found:
        return {}
    return {name: max((len(e.top_logprobs) for e in found[0].content), default=0), **more}


def _counter(
    ctx: Context, counts: Sequence[int | None], parsers: Sequence[AssistantParser] = ()
) -> UsageCounter:
    """Counts tokens of answers whose prompts have these numbers of tokens."""
    usage = ctx.usage_counter(parsers=parsers)
    usage.set_prompts([count or 0 for count in counts])
    return usage


def _named(ctx: Context, response: GenerateResponse) -> list[Any]:
    """The prompt's logprobs with the text of each candidate."""
    decode: Callable[[int], str] = ctx.require_tokenizer().decode_token
    positions = response.prompt_logprobs or []
    for candidates in positions:
        for token_id, entry in (candidates or {}).items():
            check_ids(ctx, [token_id], "generate_response")
            entry.decoded_token = decode(token_id)
    return positions
