"""/metrics, in Prometheus' text format."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from galley.server.context import Context


def routes(ctx: Context) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        body, content_type = ctx.metrics()
        return Response(body, headers={"content-type": content_type})

    return router
