"""/start_profile and /stop_profile, with --profiler-config alone."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from galley.errors import InvalidRequest
from galley.observability.perfetto import profile_settings
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.protocol.operation import ProfileFiles, profile_reader
from galley.server.response_builder import to_json
from galley.server.router import BODY_ERRORS, COMMAND_ERRORS, Router


def routes(ctx: Context) -> Router:
    router = Router()
    config = ctx.config.observability.profiler_config
    if not config.get("profiler"):
        return router

    @router.post(
        "/start_profile", profile_reader, errors={**BODY_ERRORS, **COMMAND_ERRORS}, optional=True
    )
    async def start_profile(raw: Request) -> Response:
        """Record the following steps."""
        has_body = raw.headers.get("content-length", "0") != "0"
        body = await ctx.body(raw) if has_body else b"{}"
        request = profile_reader.read(body)
        settings = profile_settings(
            config, request.profile_prefix, request.delay_iterations, request.max_iterations
        )
        await ctx.engine.call("start_profile", *settings)
        return Response(status_code=200)

    @router.post("/stop_profile", response=ProfileFiles, errors=COMMAND_ERRORS)
    async def stop_profile(raw: Request) -> Response:
        """Write the profile; the answer has each engine's path."""
        paths = await ctx.engine.call("stop_profile")
        if None in paths:
            raise InvalidRequest("No profile has been started.")
        return json_response(to_json(ProfileFiles(paths)))

    return router
