"""/v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from galley.server.answer import Head, Tally
from galley.server.chat_answer import ChatAnswer
from galley.server.context import Context, request_id
from galley.server.errors import json_response
from galley.server.openapi import wire
from galley.server.prompts import render
from galley.server.protocol.chat import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    check_chat,
    reader,
)
from galley.server.sampling import sampling_params, start
from galley.server.stream import EventResponse, Stream, collect, merge, until_disconnect


def routes(ctx: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", response_class=Response)
    @wire(reader, ChatCompletionResponse, streams=True)
    async def create_chat_completion(raw: Request) -> Response:
        """Answer a conversation; `stream` sends the text as it comes."""
        request = await ctx.read(raw, reader)
        check_chat(request, ctx.caps)
        head = Head(
            request_id(raw, "chatcmpl", request.request_id, ctx.caps.request_id),
            ctx.model_name(request.model),
            ctx.fingerprint(),
        )
        prompt = render(
            ctx,
            request.messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template=request.chat_template,
            chat_template_kwargs=_template_kwargs(request),
            documents=request.documents,
        )
        role = _role(ctx, request)
        answer = ChatAnswer(
            head,
            request,
            Tally(ctx.server.enable_prompt_tokens_details),
            role=role,
            bytes_of=lambda token_id: ctx.require_tokenizer().token_bytes(token_id),
            echo=_echo(request, role),
            prompt_text=prompt if request.return_prompt_text else None,
            as_ids=ctx.token_ids_for_texts(request.return_tokens_as_token_ids),
            force_usage=ctx.server.enable_force_include_usage,
        )
        stream = await until_disconnect(raw.receive, _start(ctx, request, prompt, head.id))
        if request.stream:
            return EventResponse(merge([stream]), answer)
        [output] = await until_disconnect(raw.receive, collect([stream]))
        return json_response(answer.whole(output))

    return router


async def _start(ctx: Context, request: ChatCompletionRequest, prompt: str, id: str) -> Stream:
    limit = request.max_completion_tokens
    params = sampling_params(
        request,
        ctx.defaults,
        max_tokens=request.max_tokens if limit is None else limit,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
    )
    return await start(ctx, prompt, params, id, request, request.add_special_tokens)


def _role(ctx: Context, request: ChatCompletionRequest) -> str:
    """The answer's role: the last message's own, where the answer continues it."""
    if request.add_generation_prompt:
        return ctx.server.response_role
    return str(request.messages[-1]["role"])


def _echo(request: ChatCompletionRequest, role: str) -> str:
    """Text of the last message, where the request wants it before the answer that goes on."""
    last = request.messages[-1]
    if not request.echo or last["role"] != role:
        return ""
    content = last.get("content")
    if isinstance(content, list):
        return "".join(p if isinstance(p, str) else p.get("text", "") for p in content)
    return content or ""


def _template_kwargs(request: ChatCompletionRequest) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    if request.reasoning_effort is not None:
        kwargs["reasoning_effort"] = request.reasoning_effort
    return {**kwargs, **(request.chat_template_kwargs or {})}
