"""Probes: /health, /ping, /version, /load."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from galley import __version__
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.openapi import wire
from galley.server.protocol.operation import ServerLoad, Version
from galley.server.response_builder import to_json


def routes(ctx: Context) -> APIRouter:
    router = APIRouter()
    probe = wire(errors={503: None})

    @router.get("/health", response_class=Response)
    @probe
    async def health() -> Response:
        """200 while requests are accepted and an engine is up, 503 otherwise."""
        up = ctx.engine.healthy and not ctx.load.draining
        return Response(status_code=200 if up else 503)

    @router.get("/ping", response_class=Response)
    @probe
    async def ping() -> Response:
        """As /health (SageMaker)."""
        return await health()

    @router.post("/ping", response_class=Response)
    @probe
    async def post_ping() -> Response:
        """As /health (SageMaker)."""
        return await health()

    @router.get("/version", response_class=Response)
    @wire(response=Version)
    async def version() -> Response:
        """The version, and whether an answer does not depend on what else is computed: null until
        an engine is up.
        """
        return json_response(to_json(Version(__version__, ctx.engine.batch_invariant)))

    @router.get("/load", response_class=Response)
    @wire(response=ServerLoad)
    async def load() -> Response:
        """Requests under way; counted with --enable-server-load-tracking, else 0."""
        counts = ctx.server.enable_server_load_tracking
        return json_response(to_json(ServerLoad(ctx.load.count if counts else 0)))

    return router
