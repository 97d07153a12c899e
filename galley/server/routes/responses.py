"""/v1/responses: create, retrieve, cancel.

Without VLLM_ENABLE_RESPONSES_API_STORE=1 nothing is stored: `store` has no effect, and `background`
and `previous_response_id` are refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from galley.chat.parts import AssistantParser
from galley.errors import GalleyError, InvalidRequest, ServerError
from galley.outputs import RequestOutput
from galley.request import SamplingParams
from galley.server.context import Context, apply_priority_header
from galley.server.errors import json_response
from galley.server.protocol.base import ErrorResponse
from galley.server.protocol.generation import GenerationFields
from galley.server.protocol.responses import (
    ResponseObject,
    ResponsesRequest,
    RetrieveQuery,
    check_responses,
    reader,
)
from galley.server.protocol.tools import response_choice
from galley.server.rendering import render
from galley.server.response_builder import to_json
from galley.server.response_object_builder import ResponseObjectBuilder
from galley.server.response_store import Record, ResponseStore
from galley.server.router import GENERATION_ERRORS, Router
from galley.server.sampling import sampling_params, start
from galley.server.stream import OutputStream, collect, merge, until_disconnect
from galley.server.tool_use import ToolUse, constrained, tool_use

logger = logging.getLogger(__name__)

_UNKNOWN = {400: ErrorResponse, 404: ErrorResponse}


def routes(ctx: Context) -> Router:
    router = Router()
    handler = ResponsesHandler(ctx, ResponseStore())

    @router.post(
        "/v1/responses", reader, response=ResponseObject, streams=True, errors=GENERATION_ERRORS
    )
    async def create_response(raw: Request) -> Response:
        """Answer a text or a conversation; `stream` sends the text as it comes."""
        return await handler.create(raw, await ctx.read(raw, reader))

    @router.get(
        "/v1/responses/{response_id}",
        query=RetrieveQuery,
        response=ResponseObject,
        streams=True,
        errors=_UNKNOWN,
    )
    async def retrieve_response(raw: Request, query: RetrieveQuery) -> Response:
        """The state of a stored response; with `stream`, its events after `starting_after`."""
        record = handler.store.get(raw.path_params["response_id"])
        if not query.stream:
            return json_response(to_json(record.response))
        if record.events is None:
            raise InvalidRequest("Only a streamed background response has events.", field="stream")
        return StreamingResponse(
            record.follow(query.starting_after), media_type="text/event-stream"
        )

    @router.post(
        "/v1/responses/{response_id}/cancel",
        response=ResponseObject,
        errors={**_UNKNOWN, 503: ErrorResponse},
    )
    async def cancel_response(raw: Request) -> Response:
        """Cancel a background response."""
        record = handler.store.get(raw.path_params["response_id"])
        if record.task is None:
            raise InvalidRequest(
                "Cannot cancel a synchronous response: close its connection.", field="response_id"
            )
        if record.running:
            record.response.status = "cancelled"
            record.task.cancel()
            await asyncio.wait([record.task])
        return json_response(to_json(record.response))

    return router


@dataclass(frozen=True)
class RenderedResponse:
    """The engine's input for a request.

    Attributes:
        messages: the conversation, without instructions.
    """

    messages: list[dict[str, Any]]
    prompt: str
    params: SamplingParams
    parser: AssistantParser | None
    fields: GenerationFields


@dataclass
class ResponsesHandler:
    """Creates responses and, if storage is enabled, keeps them."""

    ctx: Context
    store: ResponseStore

    async def create(self, raw: Request, request: ResponsesRequest) -> Response:
        apply_priority_header(raw, request)
        model = await self.ctx.model_name(request.model)
        rendered = await self.render(request)
        params = rendered.params
        response = _new_response(request, params, model)
        kept: list[bytes] | None = [] if request.background and request.stream else None
        record = Record(response, rendered.messages, kept)
        keep = self.ctx.store_responses and request.store and not request.background
        answer = ResponseObjectBuilder(
            response,
            params.logprobs,
            request.enable_response_messages,
            lambda token_id: self.ctx.require_tokenizer().token_bytes(token_id),
            on_end=lambda: self.store.add(record) if keep else None,
            parser=rendered.parser,
        )
        prompt, fields = rendered.prompt, rendered.fields
        begin = start(self.ctx, prompt, params, response.id, fields, False)
        stream = await until_disconnect(raw.receive, begin)
        if request.background:
            return self._in_background(record, stream, answer)
        if request.stream:
            return self.ctx.events([stream], answer)
        [output] = await until_disconnect(raw.receive, collect([stream]))
        body = answer.whole(output)
        return json_response(body)

    async def render(self, request: ResponsesRequest) -> RenderedResponse:
        """The prompt of a request. Raises InvalidRequest, Unsupported naming the field."""
        check_responses(request)
        if not self.ctx.store_responses:
            self._refuse_fields_that_need_a_store(request)
        use = self._tool_use(request)
        messages = self._messages(request)
        fields = request.generation(self.ctx.caps)
        params = sampling_params(
            fields,
            self.ctx.defaults,
            max_tokens=request.max_output_tokens,
            logprobs=(request.top_logprobs or 0) if request.wants_logprobs else None,
            prompt_logprobs=None,
        )
        prompt = await self._prompt(request, messages, use)
        parser = self.ctx.parser_of(prompt, use)
        if parser is not None:
            params = parser.adjust(params)
        params = await constrained(self.ctx, params, prompt, use)
        return RenderedResponse(messages, prompt, params, parser, fields)

    # ------------------------------------------------------------------ background

    def _in_background(
        self, record: Record, stream: OutputStream, answer: ResponseObjectBuilder
    ) -> Response:
        self.store.add(record)
        streamed = record.events is not None
        if not streamed:
            record.response.status = "queued"
        queued = to_json(record.response)
        record.task = asyncio.ensure_future(self._produce(record, stream, answer))
        record.task.add_done_callback(lambda _: record.wake())
        if streamed:
            return StreamingResponse(record.follow(), media_type="text/event-stream")
        return json_response(queued)

    async def _produce(
        self, record: Record, stream: OutputStream, answer: ResponseObjectBuilder
    ) -> None:
        """Run a background response to its end; the record shows the result."""
        try:
            record.response.status = "in_progress"
            last: RequestOutput | None = None
            async for _, output in merge([stream]):
                last = output
                if record.events is not None:
                    record.add(_split(answer.encode(0, output)))
            if record.events is not None:
                record.add(_split(answer.last()))
            elif last is not None:
                answer.whole(last)
        except asyncio.CancelledError:
            record.response.status = "cancelled"
        except GalleyError as error:
            self._failed(record, answer, error)
        except Exception:
            logger.exception("A background response failed.")
            self._failed(record, answer, ServerError("Internal server error."))
        finally:
            await stream.aclose()

    @staticmethod
    def _failed(record: Record, answer: ResponseObjectBuilder, error: GalleyError) -> None:
        end = answer.failed(error)
        if record.events is not None:
            record.add(_split(end))

    # ------------------------------------------------------------------ input

    def _refuse_fields_that_need_a_store(self, request: ResponsesRequest) -> None:
        for name in ("background", "previous_response_id"):
            if getattr(request, name):
                raise InvalidRequest(
                    f"`{name}` needs stored responses: start with "
                    "VLLM_ENABLE_RESPONSES_API_STORE=1.",
                    field=name,
                )

    def _tool_use(self, request: ResponsesRequest) -> ToolUse:
        """Raises InvalidRequest for a choice of tools that cannot be served."""
        given = request.tools or []
        tools = [function for tool in given for function in tool.functions()]
        choice = response_choice(
            request.tool_choice or ("auto" if tools else None), request.parallel_tool_calls, given
        )
        without = not tools and request.tool_choice == "auto"
        return tool_use(
            self.ctx.server,
            tools,
            None if without else choice,
            given=request.tools is not None,
            reasoning=request.include_reasoning,
            request_type="responses",
            streaming=bool(request.stream),
        )

    def _messages(self, request: ResponsesRequest) -> list[dict[str, Any]]:
        """The whole conversation without instructions, which belong to one request only."""
        before = request.previous_input_messages or []
        if request.previous_response_id:
            record = self.store.get(request.previous_response_id)
            if record.response.status not in ("completed", "incomplete"):
                raise InvalidRequest(
                    f"The previous response is {record.response.status}.",
                    field="previous_response_id",
                )
            before = record.next_messages()
        return [*before, *request.messages()]

    async def _prompt(
        self, request: ResponsesRequest, messages: list[dict[str, Any]], use: ToolUse
    ) -> str:
        kwargs = dict(request.chat_template_kwargs or {})
        if request.reasoning and request.reasoning.effort:
            kwargs.setdefault("reasoning_effort", request.reasoning.effort)
            kwargs.setdefault("enable_thinking", request.reasoning.effort != "none")
        if request.instructions:
            messages = [{"role": "system", "content": request.instructions}, *messages]
        return await render(
            self.ctx,
            messages,
            add_generation_prompt=not request.continues_message,
            continue_final_message=request.continues_message,
            chat_template=None,
            chat_template_kwargs=kwargs,
            tools=use.for_template(),
        )


def _new_response(request: ResponsesRequest, params: SamplingParams, model: str) -> ResponseObject:
    return ResponseObject(
        id=request.request_id or f"resp_{uuid.uuid4().hex}",
        created_at=int(time.time()),
        status="in_progress",
        instructions=request.instructions,
        metadata=request.metadata,
        model=model,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        tools=request.tools or [],
        tool_choice=request.tool_choice or "auto",
        temperature=params.temperature,
        top_p=params.top_p,
        background=bool(request.background),
        max_output_tokens=params.max_tokens,
        previous_response_id=request.previous_response_id,
        reasoning=request.reasoning,
        service_tier="default" if request.service_tier == "auto" else request.service_tier,
        top_logprobs=request.top_logprobs,
        text=request.text,
        truncation=request.truncation or "disabled",
        user=request.user,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        kv_transfer_params=request.kv_transfer_params,
    )


def _split(events: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in events.split(b"\n\n")[:-1]]
