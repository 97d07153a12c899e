"""Probes: /health, /ping, /version, /load."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from galley import __version__
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.protocol.operation import ServerLoad, Version
from galley.server.response_builder import to_json
from galley.server.router import Errors, Router


def routes(ctx: Context) -> Router:
    router = Router()
    probe: Errors = {503: None}

    @router.get("/health", errors=probe)
    async def health(raw: Request) -> Response:
        """200 while requests are accepted and an engine is up, 503 otherwise."""
        up = ctx.engine.healthy and not ctx.load.draining
        return Response(status_code=200 if up else 503)

    @router.get("/ping", errors=probe)
    async def ping(raw: Request) -> Response:
        """As /health (SageMaker)."""
        return await health(raw)

    @router.post("/ping", errors=probe)
    async def post_ping(raw: Request) -> Response:
        """As /health (SageMaker)."""
        return await health(raw)

    @router.get("/version", response=Version)
    async def version(raw: Request) -> Response:
        """The version, and whether answers are batch invariant: null until an engine is up."""
        return json_response(to_json(Version(__version__, ctx.engine.batch_invariant)))

    @router.get("/load", response=ServerLoad)
    async def load(raw: Request) -> Response:
        """Requests in flight; counted with --enable-server-load-tracking, else 0."""
        counts = ctx.server.enable_server_load_tracking
        return json_response(to_json(ServerLoad(ctx.load.count if counts else 0)))

    return router
