"""Routes for development only, with VLLM_SERVER_DEV_MODE=1: they can stop the server's work and
show its configuration.
"""

from __future__ import annotations

import asyncio
import os
import platform
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from galley import __version__
from galley.errors import InvalidRequest, Unsupported
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.protocol.base import ErrorResponse
from galley.server.protocol.operation import (
    CacheReset,
    CollectiveRpc,
    ResetPrefixCacheQuery,
    RpcResults,
    ServerInfo,
    ServerInfoQuery,
    WorldSize,
    rpc_reader,
)
from galley.server.response_builder import to_json
from galley.server.router import BODY_ERRORS, COMMAND_ERRORS, Router

#: Read-only methods of the workers, and the types of their arguments.
RPC_METHODS: dict[str, list[type]] = {
    "describe": [],
    "memory": [],
    "timings": [],
    "profile": [bool],
}
#: Prefixes of variables that /server_info shows, and words in the names of secrets.
_PREFIXES, _SECRET = (
    ("VLLM_", "GALLEY_", "OMP_", "PROMETHEUS_", "OTEL_"),
    ("KEY", "TOKEN", "HEADERS"),
)


def routes(ctx: Context) -> Router:
    router = Router()
    if not ctx.dev_mode:
        return router
    _information(router, ctx)
    _caches(router, ctx)
    return router


def _information(router: Router, ctx: Context) -> None:
    @router.get(
        "/server_info", query=ServerInfoQuery, response=ServerInfo, errors={400: ErrorResponse}
    )
    async def server_info(raw: Request, query: ServerInfoQuery) -> Response:
        """The configuration and environment variables, without secrets."""
        server = asdict(ctx.server)
        server["api_key"] = ["***"] * len(ctx.server.api_key)
        configs: Any = {**asdict(ctx.config), "server": server}
        if isinstance(ctx.config.model.hf_token, str):
            configs["model"]["hf_token"] = "***"
        if query.config_format == "text":
            configs = str(configs)
        variables = {
            name: "***" if any(word in name for word in _SECRET) else value
            for name, value in sorted(os.environ.items())
            if name.startswith(_PREFIXES)
        }
        return json_response(to_json(ServerInfo(configs, variables, _system())))

    @router.get("/get_world_size", response=WorldSize)
    async def get_world_size(raw: Request) -> Response:
        """Ranks that compute a step."""
        parallel = ctx.config.parallel
        size = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        return json_response(to_json(WorldSize(size)))

    @router.post(
        "/collective_rpc", rpc_reader, response=RpcResults, errors={**BODY_ERRORS, **COMMAND_ERRORS}
    )
    async def collective_rpc(raw: Request) -> Response:
        """Run one of a few harmless methods on all workers; one result each."""
        request = await ctx.read(raw, rpc_reader)
        _check(request)
        call = ctx.engine.call(request.method, *request.args)
        try:
            results = await asyncio.wait_for(call, request.timeout)
        except TimeoutError as e:
            raise InvalidRequest(
                f"{request.method} did not end within {request.timeout} s.", field="timeout"
            ) from e
        flat = [one for engine in results for one in engine]
        return json_response(to_json(RpcResults(flat)))


def _check(request: CollectiveRpc) -> None:
    """Raise Unsupported for another method, InvalidRequest for arguments that it does not take."""
    types = RPC_METHODS.get(request.method)
    if types is None or request.kwargs:
        raise Unsupported(
            f"collective_rpc runs {', '.join(RPC_METHODS)}, without keyword arguments; got "
            f"{request.method:.100}.",
            field="method",
        )
    if [type(arg) for arg in request.args] != types:
        names = ", ".join(t.__name__ for t in types) or "none"
        raise InvalidRequest(f"arguments of {request.method}: {names}.", field="args")


def _system() -> dict[str, str]:
    """The machine and the interpreter, by vLLM's names."""
    return {
        "os": f"{platform.system()} {platform.release()}",
        "libc_version": "-".join(platform.libc_ver()),
        "python_version": platform.python_version(),
        "python_platform": platform.platform(),
        "cpu_info": f"{platform.machine()}, {os.cpu_count()} cores",
        "vllm_version": __version__,
    }


def _caches(router: Router, ctx: Context) -> None:
    @router.post(
        "/reset_prefix_cache",
        query=ResetPrefixCacheQuery,
        response=CacheReset,
        errors=COMMAND_ERRORS,
    )
    async def reset_prefix_cache(raw: Request, query: ResetPrefixCacheQuery) -> Response:
        """Clear the prefix cache; not while blocks are in use (unless requests are reset)."""
        if query.reset_external:
            raise Unsupported("there is no KV connector.", field="reset_external")
        done = await ctx.engine.call("reset_prefix_cache", query.reset_running_requests)
        return json_response(to_json(CacheReset(all(done))))

    @router.post("/reset_mm_cache", errors={503: ErrorResponse})
    @router.post("/reset_encoder_cache", errors={503: ErrorResponse})
    async def reset_mm_cache(raw: Request) -> Response:
        """There are no such caches; does nothing."""
        return Response(status_code=200)
