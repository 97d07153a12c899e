"""/v1/chat/completions, for one conversation and for a batch."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from galley.chat.parts import AssistantParser
from galley.errors import InvalidRequest
from galley.request import SamplingParams
from galley.server.beam import search
from galley.server.chat_builder import AnswerRole, ChatResponseBuilder
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.embeds import EmbedParts
from galley.server.errors import json_response
from galley.server.load_report import load_report
from galley.server.protocol.chat import (
    ChatCompletionResponse,
    ChatFields,
    batch_reader,
    check_batch,
    check_chat,
    reader,
)
from galley.server.protocol.tools import chat_choice
from galley.server.rendering import render
from galley.server.response_builder import ResponseHeader
from galley.server.router import GENERATION_ERRORS, Router
from galley.server.sampling import sampling_params, start
from galley.server.stream import (
    OutputStream,
    collect,
    start_all,
    until_disconnect,
)
from galley.server.tool_use import ToolUse, constrained, tool_use

Messages = list[dict[str, Any]]


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post(
        "/v1/chat/completions",
        reader,
        response=ChatCompletionResponse,
        streams=True,
        errors=GENERATION_ERRORS,
    )
    async def create_chat_completion(raw: Request) -> Response:
        """Answer a conversation; `stream` sends the text as it comes."""
        return await respond(ctx, raw, await ctx.body(raw))

    @router.post(
        "/v1/chat/completions/batch",
        batch_reader,
        response=ChatCompletionResponse,
        errors=GENERATION_ERRORS,
    )
    async def create_batch_chat_completion(raw: Request) -> Response:
        """Answer several conversations; one choice each, in their order."""
        request = await ctx.read(raw, batch_reader)
        apply_priority_header(raw, request)
        check_batch(request, ctx.caps)
        use = tool_use_of(ctx, request)
        head = await _head(ctx, raw, request)
        embeds = [EmbedParts(messages) for messages in request.messages]
        prompts = [await prompt_of(ctx, request, parts.messages, use) for parts in embeds]
        parsers = [ctx.parsers(prompt, request.n or 1, use) for prompt in prompts]
        answer = _answer(ctx, head, request, request.messages, parsers)
        streams = await until_disconnect(
            raw.receive,
            start_all(
                start_chat(ctx, request, prompt, f"{head.id}_{i}", parsers[i], use, embeds[i])
                for i, prompt in enumerate(prompts)
            ),
        )
        return json_response(answer.whole(await until_disconnect(raw.receive, collect(streams))))

    return router


async def respond(ctx: Context, raw: Request, body: bytes) -> Response:
    """The answer to a chat request with this body. Raises ClientError, ServerError."""
    request = ctx.parse(raw, reader, body)
    apply_priority_header(raw, request)
    check_chat(request, ctx.caps)
    use = tool_use_of(ctx, request)
    head = await _head(ctx, raw, request)
    embeds = EmbedParts(request.messages)
    prompt = await prompt_of(ctx, request, embeds.messages, use)
    parsers = ctx.parsers(prompt, request.n or 1, use)
    answer = _answer(ctx, head, request, [request.messages], [parsers], prompt)
    if request.use_beam_search:
        if use.choice.forced:
            raise InvalidRequest(
                "`tool_choice` of a call is not available with beam search.", field="tool_choice"
            )
        limit = request.max_completion_tokens
        searching = search(
            *(ctx, prompt, request, head.id),
            max_tokens=request.max_tokens if limit is None else limit,
            add_special_tokens=request.add_special_tokens,
        )
        return json_response(
            answer.whole([await until_disconnect(raw.receive, searching)]),
            headers=load_report(raw, ctx.metrics),
        )
    starting = start_chat(ctx, request, prompt, head.id, parsers, use, embeds)
    stream = await until_disconnect(raw.receive, starting)
    if request.stream:
        return ctx.events([stream], answer)
    return json_response(
        answer.whole(await until_disconnect(raw.receive, collect([stream]))),
        headers=load_report(raw, ctx.metrics),
    )


async def _head(ctx: Context, raw: Request, request: ChatFields) -> ResponseHeader:
    return ResponseHeader(
        request_id(raw, "chatcmpl", request.request_id, ctx.caps.request_id),
        await ctx.model_name(request.model),
        ctx.fingerprint(),
    )


def _answer(
    ctx: Context,
    head: ResponseHeader,
    request: ChatFields,
    conversations: list[Messages],
    parsers: list[list[AssistantParser]],
    prompt: str | None = None,
) -> ChatResponseBuilder:
    own = [parser for each in parsers for parser in each]
    return ChatResponseBuilder(
        head,
        request,
        ctx.usage_counter(parsers=own),
        roles=[answer_role(ctx, request, messages) for messages in conversations],
        bytes_of=lambda token_id: ctx.require_tokenizer().token_bytes(token_id),
        parsers=own or None,
        prompt_text=prompt if request.return_prompt_text else None,
        as_ids=ctx.token_ids_for_texts(request.return_tokens_as_token_ids),
        force_usage=ctx.server.enable_force_include_usage,
    )


def tool_use_of(ctx: Context, request: ChatFields) -> ToolUse:
    """Raises InvalidRequest for a choice of tools that cannot be served."""
    return tool_use(
        ctx.server,
        [each.tool() for each in request.tools or ()],
        chat_choice(request.tool_choice, request.parallel_tool_calls),
        given=request.tools is not None,
        reasoning=request.include_reasoning,
        thinking_budget=request.thinking_token_budget,
        request_type="chat_completions",
        streaming=bool(request.stream),
    )


async def prompt_of(ctx: Context, request: ChatFields, messages: Messages, use: ToolUse) -> str:
    """The text that the model is given for `messages`."""
    return await render(
        ctx,
        messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template=request.chat_template,
        chat_template_kwargs=_template_kwargs(request),
        tools=use.for_template(),
        documents=request.documents,
    )


async def start_chat(
    ctx: Context,
    request: ChatFields,
    prompt: str,
    name: str,
    parsers: list[AssistantParser],
    use: ToolUse,
    embeds: EmbedParts,
) -> OutputStream:
    """Hand a rendered conversation to the engine."""
    params = await chat_params(ctx, request, prompt, parsers, use)
    given = await embeds.put_into(ctx, prompt, request.add_special_tokens)
    try:
        return await start(ctx, given, params, name, request, request.add_special_tokens)
    except InvalidRequest as error:
        if error.field != "logprobs":
            raise
        # A chat's name of it.
        raise InvalidRequest(f"top_{error.message}", field="top_logprobs") from None


async def chat_params(
    ctx: Context,
    request: ChatFields,
    prompt: str,
    parsers: list[AssistantParser],
    use: ToolUse,
) -> SamplingParams:
    """How a rendered conversation is answered."""
    limit = request.max_completion_tokens
    params = sampling_params(
        request,
        ctx.defaults,
        max_tokens=request.max_tokens if limit is None else limit,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
    )
    if parsers:
        params = parsers[0].adjust(params)
    return await constrained(ctx, params, prompt, use)


def answer_role(ctx: Context, request: ChatFields, messages: Messages) -> AnswerRole:
    """The last message's role, where the answer continues it; its text, where it is asked for."""
    last = messages[-1]
    role = ctx.server.response_role if request.add_generation_prompt else str(last["role"])
    if not request.echo or last["role"] != role:
        return AnswerRole(role)
    content = last.get("content")
    if isinstance(content, list):
        content = "".join(p if isinstance(p, str) else p.get("text", "") for p in content)
    return AnswerRole(role, content or "")


def _template_kwargs(request: ChatFields) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    if request.reasoning_effort is not None:
        kwargs["reasoning_effort"] = request.reasoning_effort
        kwargs["enable_thinking"] = request.reasoning_effort != "none"
    return {**kwargs, **(request.chat_template_kwargs or {})}
