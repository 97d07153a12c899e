"""/metrics, in Prometheus' text format."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from galley.server.context import Context
from galley.server.openapi import wire


def routes(ctx: Context) -> APIRouter:
    router = APIRouter()

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", response_class=Response)
    @wire(response=str)
    async def metrics() -> Response:
        body, content_type = ctx.metrics()
        return Response(body, headers={"content-type": content_type})

    return router
