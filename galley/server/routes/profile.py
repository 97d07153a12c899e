"""/start_profile and /stop_profile, with --profiler-config alone."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from galley.errors import InvalidRequest
from galley.server.answer import to_json
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.protocol.base import BodyReader

Steps = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class StartProfile(msgspec.Struct, kw_only=True):
    """What to note: the steps after the first `delay_iterations`, at most `max_iterations`."""

    profile_prefix: str | None = None
    delay_iterations: Steps | None = None
    max_iterations: Steps | None = None


reader = BodyReader(StartProfile, {})


def routes(ctx: Context) -> APIRouter:
    router = APIRouter()
    config = ctx.server.profiler_config
    if not config.get("profiler"):
        return router

    @router.post("/start_profile", response_class=Response)
    async def start_profile(raw: Request) -> Response:
        """Note what the steps do from now on."""
        body = await raw.body() if raw.headers.get("content-length", "0") != "0" else b"{}"
        asked = reader.read(body)

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
    async def stop_profile() -> Response:
        """Write the file; tells its path, of each engine."""
        paths = await ctx.engine.call("stop_profile")
        if None in paths:
            raise InvalidRequest("No profile has been started.")
        return json_response(to_json({"files": paths}))

    return router
