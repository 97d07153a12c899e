"""/start_profile and /stop_profile, with --profiler-config alone."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from galley.errors import InvalidRequest
from galley.server.answer import to_json
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.openapi import ACTING, READING, wire
from galley.server.protocol.operation import ProfileFiles, profile_reader


def routes(ctx: Context) -> APIRouter:
    router = APIRouter()
    config = ctx.server.profiler_config
    if not config.get("profiler"):
        return router

    @router.post("/start_profile", response_class=Response)
    @wire(profile_reader, errors={**READING, **ACTING}, optional=True)
    async def start_profile(raw: Request) -> Response:
        """Note what the steps do from now on."""
        given_one = raw.headers.get("content-length", "0") != "0"
        body = await ctx.body(raw) if given_one else b"{}"
        asked = profile_reader.read(body)

        def given(name: str) -> Any:
            value = getattr(asked, name)
            return config.get(name, 0) if value is None else value

        await ctx.engine.call(
            "start_profile",
            str(config["torch_profiler_dir"]),
            asked.profile_prefix or "",
            given("delay_iterations"),
            given("max_iterations"),
        )
        return Response(status_code=200)

    @router.post("/stop_profile", response_class=Response)
    @wire(response=ProfileFiles, errors=ACTING)
    async def stop_profile() -> Response:
        """Write the file; tells its path, of each engine."""
        paths = await ctx.engine.call("stop_profile")
        if None in paths:
            raise InvalidRequest("No profile has been started.")
        return json_response(to_json(ProfileFiles(paths)))

    return router
