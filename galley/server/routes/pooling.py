"""/pooling and /classify."""

from __future__ import annotations

import time
from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from galley.request import PoolingParams
from galley.server.context import Context, apply_priority_header, request_id
from galley.server.errors import json_response
from galley.server.load_report import load_report
from galley.server.pooling import (
    as_bytes,
    numbers_of,
    pooled,
    prompts_of,
    settings_of,
    usage_of,
)
from galley.server.protocol.pooling import (
    ClassificationData,
    ClassificationResponse,
    PoolingData,
    PoolingResponse,
    classification_reader,
    pooling_reader,
)
from galley.server.response_builder import to_json
from galley.server.router import GENERATION_ERRORS, Router


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post("/pooling", pooling_reader, response=PoolingResponse, errors=GENERATION_ERRORS)
    async def pool(raw: Request) -> Response:
        """The numbers that a task makes of a text, or of several."""
        request = await ctx.read(raw, pooling_reader)
        apply_priority_header(raw, request)
        prompts, special, field = await prompts_of(ctx, request)
        model = await ctx.model_name(request.model)
        id = request_id(raw, "pool", request.request_id, ctx.caps.request_id)
        params = PoolingParams(task=request.task, dimensions=request.dimensions)
        outputs = await pooled(
            ctx, raw, request, prompts, params, id, field=field, add_special_tokens=special
        )
        usage = usage_of(outputs, ctx.server.enable_prompt_tokens_details)
        created = int(time.time())
        if request.encoding_format in ("bytes", "bytes_only"):
            header = {"id": id, "created": created, "model": model}
            return as_bytes(outputs, request, {**header, "usage": msgspec.to_builtins(usage)})
        response = PoolingResponse(
            id=id,
            created=created,
            model=model,
            data=[
                PoolingData(index=i, data=numbers_of(output.outputs.data, request))
                for i, output in enumerate(outputs)
            ],
            usage=usage,
        )
        return json_response(to_json(response), headers=load_report(raw, ctx.metrics))

    @router.post(
        "/classify",
        classification_reader,
        response=ClassificationResponse,
        errors=GENERATION_ERRORS,
    )
    async def classify(raw: Request) -> Response:
        """The labels of a text, or of several."""
        return await respond(ctx, raw, await ctx.body(raw))

    return router


async def respond(ctx: Context, raw: Request, body: bytes) -> Response:
    """The answer to a body of /classify."""
    request = classification_reader.read(body)
    apply_priority_header(raw, request)
    prompts, special, field = await prompts_of(ctx, request)
    model = await ctx.model_name(request.model)
    id = request_id(raw, "classify", request.request_id, ctx.caps.request_id)
    outputs = await pooled(
        ctx,
        raw,
        request,
        prompts,
        PoolingParams(task="classify"),
        id,
        field=field,
        add_special_tokens=special,
    )
    labels = settings_of(ctx).labels
    data = []
    for i, output in enumerate(outputs):
        probs = cast(list[float], output.outputs.data.tolist())
        best = labels[max(range(len(probs)), key=probs.__getitem__)]
        data.append(ClassificationData(index=i, label=best, probs=probs, num_classes=len(probs)))
    response = ClassificationResponse(
        id=id,
        created=int(time.time()),
        model=model,
        data=data,
        usage=usage_of(outputs, ctx.server.enable_prompt_tokens_details),
    )
    return json_response(to_json(response), headers=load_report(raw, ctx.metrics))
