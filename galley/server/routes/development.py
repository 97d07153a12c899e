"""Routes for development alone, with VLLM_SERVER_DEV_MODE=1: whoever reaches them can stop the
server's work and read its configuration.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import Any, Literal

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from galley.errors import Unsupported
from galley.server.answer import to_json
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.protocol.base import BodyReader

#: Methods of the workers that only tell.
RPC_METHODS = ("describe", "memory", "timings", "profile")
#: Variables whose names begin so are told by /server_info; those of secrets are not.
_TOLD, _SECRET = ("VLLM_", "GALLEY_", "OMP_", "PROMETHEUS_", "OTEL_"), ("KEY", "TOKEN", "HEADERS")


class CollectiveRpc(msgspec.Struct, kw_only=True):
    """A method to run on all workers."""

    method: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    timeout: float | None = None


class AbortRequests(msgspec.Struct, kw_only=True):
    """Ids of requests to end; without any, all are ended."""

    request_ids: list[str] | None = None


rpc_reader = BodyReader(CollectiveRpc, {})
abort_reader = BodyReader(AbortRequests, {})


def routes(ctx: Context) -> APIRouter:
    router = APIRouter()
    if not ctx.dev_mode:
        return router
    _information(router, ctx)
    _caches(router, ctx)
    _pausing(router, ctx)
    return router


def _information(router: APIRouter, ctx: Context) -> None:
    @router.get("/server_info", response_class=Response)
    async def server_info(config_format: Literal["text", "json"] = "text") -> Response:
        """The configuration and the variables that were heeded; secrets left out."""
        server = asdict(ctx.server)
        server["api_key"] = ["***"] * len(ctx.server.api_key)
        configs: Any = {**asdict(ctx.config), "server": server}
        if config_format == "text":
            configs = str(configs)
        told = {
            name: "***" if any(word in name for word in _SECRET) else value
            for name, value in sorted(os.environ.items())
            if name.startswith(_TOLD)
        }
        return json_response(to_json({"vllm_config": configs, "vllm_env": told}))

    @router.get("/get_world_size", response_class=Response)
    async def get_world_size() -> Response:
        """Ranks that compute a step."""
        parallel = ctx.config.parallel
        size = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        return json_response(to_json({"world_size": size}))

    @router.post("/collective_rpc", response_class=Response)
    async def collective_rpc(raw: Request) -> Response:
        """Run one of a few harmless methods on all workers; one result each."""
        request = await ctx.read(raw, rpc_reader)
        if request.method not in RPC_METHODS or request.kwargs:
            raise Unsupported(
                f"collective_rpc runs {', '.join(RPC_METHODS)}, without keyword arguments; got "
                f"{request.method:.100}.",
                field="method",
            )
        call = ctx.engine.call(request.method, *request.args)
        results = await asyncio.wait_for(call, request.timeout)
        flat = [one for engine in results for one in engine]
        return json_response(to_json({"results": flat}))


def _caches(router: APIRouter, ctx: Context) -> None:
    @router.post("/reset_prefix_cache", response_class=Response)
    async def reset_prefix_cache(
        reset_running_requests: bool = False, reset_external: bool = False
    ) -> Response:
        """Forget cached prefixes; 409 while blocks are in use, unless running requests are to
        start again.
        """
        if reset_external:
            raise Unsupported("there is no KV connector.", field="reset_external")
        done = await ctx.engine.call("reset_prefix_cache", reset_running_requests)
        return Response(status_code=200 if all(done) else 409)

    @router.post("/reset_mm_cache", response_class=Response)
    @router.post("/reset_encoder_cache", response_class=Response)
    async def reset_mm_cache() -> Response:
        """There are no such caches: nothing to do."""
        return Response(status_code=200)


def _pausing(router: APIRouter, ctx: Context) -> None:
    @router.post("/pause", response_class=Response)
    async def pause(
        mode: Literal["abort", "wait", "keep"] = "abort", clear_cache: bool = True
    ) -> Response:
        """Stop computing. Requests under way are aborted, waited for, or kept for /resume; new
        ones wait.
        """
        if mode == "wait":
            while ctx.engine.num_unfinished:
                await asyncio.sleep(0.01)
        await ctx.engine.call("pause")
        if mode == "abort":
            ctx.engine.abort_all()
        if clear_cache and mode != "keep":
            await ctx.engine.call("reset_prefix_cache", False)
        return json_response(to_json({"status": "paused"}))

    @router.post("/resume", response_class=Response)
    async def resume() -> Response:
        """Compute again."""
        await ctx.engine.call("resume")
        return json_response(to_json({"status": "resumed"}))

    @router.get("/is_paused", response_class=Response)
    async def is_paused() -> Response:
        paused = any(await ctx.engine.call("is_paused"))
        return json_response(to_json({"is_paused": paused}))

    @router.post("/abort_requests", response_class=Response)
    async def abort_requests(raw: Request) -> Response:
        """End requests by id, or all of this process; their readers get what there is."""
        request = await ctx.read(raw, abort_reader)
        if request.request_ids is None:
            ctx.engine.abort_all()
        for request_id in request.request_ids or ():
            ctx.engine.abort(request_id)
        return Response(status_code=200)
