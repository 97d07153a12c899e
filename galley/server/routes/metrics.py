"""/metrics, in Prometheus' text format."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from galley.server.context import Context
from galley.server.router import Router


def routes(ctx: Context) -> Router:
    router = Router()

    @router.head("/metrics", hidden=True, response=str)
    @router.get("/metrics", response=str)
    async def metrics(raw: Request) -> Response:
        body, content_type = ctx.metrics()
        return Response(body, headers={"content-type": content_type})

    return router
