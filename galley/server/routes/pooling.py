"""/pooling and /classify."""

from __future__ import annotations

from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from galley.request import PoolingParams
from galley.server.context import Context
from galley.server.pooling import answered, pool, respond_with_numbers, settings_of
from galley.server.protocol.pooling import (
    ClassificationData,
    ClassificationResponse,
    PoolingData,
    PoolingResponse,
    classification_reader,
    pooling_reader,
)
from galley.server.router import GENERATION_ERRORS, Router


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post("/pooling", pooling_reader, response=PoolingResponse, errors=GENERATION_ERRORS)
    async def pooling(raw: Request) -> Response:
        """The numbers that a task makes of a text, or of several."""
        request = await ctx.read(raw, pooling_reader)

        def entry(index: int, data: Any) -> PoolingData:
            return PoolingData(index=index, data=data)

        return await respond_with_numbers(
            ctx, raw, request, request.task, "pool", PoolingResponse, entry
        )

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
    request = ctx.parse(raw, classification_reader, body)
    done = await pool(ctx, raw, request, PoolingParams(task="classify"), "classify")
    labels = settings_of(ctx).labels
    data = []
    for i, output in enumerate(done.outputs):
        probs = cast(list[float], output.outputs.data.tolist())
        best = labels[max(range(len(probs)), key=probs.__getitem__)]
        data.append(ClassificationData(index=i, label=best, probs=probs, num_classes=len(probs)))
    return answered(ctx, raw, ClassificationResponse, done, data)
