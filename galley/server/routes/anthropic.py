"""/v1/messages and /v1/messages/count_tokens (Anthropic)."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from galley.chat.parts import AssistantParser
from galley.request import SamplingParams
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.errors import json_response
from galley.server.message_builder import MessageBuilder, error_response
from galley.server.protocol.anthropic import (
    Conversation,
    Message,
    MessagesError,
    MessagesRequest,
    TokenCount,
    count_reader,
    messages_reader,
)
from galley.server.protocol.generation import GenerationFields
from galley.server.protocol.tools import message_choice
from galley.server.rendering import render
from galley.server.response_builder import to_json
from galley.server.router import Router
from galley.server.sampling import sampling_params, start
from galley.server.stream import collect, until_disconnect
from galley.server.tool_use import ToolUse, constrained, tool_use

_MODEL_ERRORS = dict.fromkeys((400, 404, 413, 503), MessagesError)
_GENERATION_ERRORS = {**_MODEL_ERRORS, 500: MessagesError}


def routes(ctx: Context) -> Router:
    router = Router("/v1/messages", error_response)

    @router.post("", messages_reader, response=Message, streams=True, errors=_GENERATION_ERRORS)
    async def create_message(raw: Request) -> Response:
        """Answer a conversation; `stream` sends the text as it comes."""
        request = await ctx.read(raw, messages_reader)
        fields = request.generation(ctx.caps)
        apply_priority_header(raw, fields)
        model = await ctx.model_name(request.model)
        id = request_id(raw, "msg", None, ctx.caps.request_id)
        prompt, params, parser = await rendered_message(ctx, request, fields)
        answer = MessageBuilder(id, model, parser, request.kv_transfer_params)
        begin = start(ctx, prompt, params, id, fields, False)
        stream = await until_disconnect(raw.receive, begin)
        if request.stream:
            return ctx.events([stream], answer)
        [output] = await until_disconnect(raw.receive, collect([stream]))
        return json_response(answer.whole(output))

    @router.post("/count_tokens", count_reader, response=TokenCount, errors=_MODEL_ERRORS)
    async def count_tokens(raw: Request) -> Response:
        """The number of tokens of a conversation's prompt."""
        request = await ctx.read(raw, count_reader)
        await ctx.model_name(request.model)
        text = await _prompt(ctx, request, _tool_use(ctx, request))
        ids = await asyncio.to_thread(ctx.require_tokenizer().encode, text, False)
        return json_response(to_json(TokenCount(len(ids))))

    return router


async def rendered_message(
    ctx: Context, request: MessagesRequest, fields: GenerationFields
) -> tuple[str, SamplingParams, AssistantParser | None]:
    """The prompt of a conversation, how it is answered, and the parser of its answer."""
    use = _tool_use(ctx, request, bool(request.stream))
    prompt = await _prompt(ctx, request, use)
    parser = ctx.parser_of(prompt, use)
    params = sampling_params(
        fields,
        ctx.defaults,
        max_tokens=request.max_tokens,
        logprobs=None,
        prompt_logprobs=None,
    )
    if parser is not None:
        params = parser.adjust(params)
    return prompt, await constrained(ctx, params, prompt, use), parser


def _tool_use(ctx: Context, request: Conversation, streaming: bool = False) -> ToolUse:
    """Raises InvalidRequest for a choice of tools that cannot be served."""
    return tool_use(
        ctx.server,
        [each.tool() for each in request.tools or ()],
        message_choice(request.tool_choice),
        given=request.tools is not None,
        thinking_budget=request.thinking.budget_tokens if request.thinking else None,
        streaming=streaming,
    )


async def _prompt(ctx: Context, request: Conversation, use: ToolUse) -> str:
    return await render(
        ctx,
        request.chat_messages(),
        add_generation_prompt=not request.continues,
        continue_final_message=request.continues,
        chat_template=None,
        chat_template_kwargs=request.template_kwargs(),
        tools=use.for_template(),
    )
