"""Pauses and sleep, with VLLM_SERVER_DEV_MODE=1. The engines pause, so it holds for the
requests of all API servers.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext

from starlette.requests import Request
from starlette.responses import Response

from galley.observability.sleep_metrics import Operation
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.protocol.operation import (
    AbortStatus,
    IsPaused,
    IsSleeping,
    Mode,
    PauseQuery,
    PauseStatus,
    SleepQuery,
    SleepStatus,
    WakeQuery,
    WakeStatus,
    abort_reader,
)
from galley.server.response_builder import to_json
from galley.server.router import BODY_ERRORS, COMMAND_ERRORS, QUERY_ERRORS, Router

#: Seconds between two polls while requests drain.
POLL_INTERVAL = 0.01


def routes(ctx: Context) -> Router:
    router = Router()
    if ctx.dev_mode:
        _pauses(router, ctx)
        _sleep(router, ctx)
    return router


def _pauses(router: Router, ctx: Context) -> None:
    @router.post("/pause", query=PauseQuery, response=PauseStatus, errors=COMMAND_ERRORS)
    async def pause(raw: Request, query: PauseQuery) -> Response:
        """Stop taking steps. Running requests are aborted, waited for, or kept for /resume; new
        ones wait.
        """
        await pause_engines(ctx, query.mode, query.clear_cache)
        return json_response(to_json(PauseStatus("paused")))

    @router.post("/resume", response=PauseStatus, errors=QUERY_ERRORS)
    async def resume(raw: Request) -> Response:
        """Take steps again."""
        await ctx.engine.call("resume")
        ctx.on_sleep(None)
        return json_response(to_json(PauseStatus("resumed")))

    @router.get("/is_paused", response=IsPaused, errors=QUERY_ERRORS)
    async def is_paused(raw: Request) -> Response:
        paused = any(await ctx.engine.call("is_paused"))
        return json_response(to_json(IsPaused(paused)))

    @router.post(
        "/abort_requests",
        abort_reader,
        response=AbortStatus,
        errors={**BODY_ERRORS, **QUERY_ERRORS},
    )
    async def abort_requests(raw: Request) -> Response:
        """Abort requests, all or by their ids; their readers get the output so far."""
        request = await ctx.read(raw, abort_reader)
        names = request.request_ids or None
        ended = sum(await ctx.engine.call("abort_all", names))
        return json_response(to_json(AbortStatus(len(names) if names else ended)))


def _sleep(router: Router, ctx: Context) -> None:
    def measure(operation: Operation) -> AbstractContextManager[None]:
        return ctx.sleep_metrics.record(operation) if ctx.sleep_metrics else nullcontext()

    @router.post("/sleep", query=SleepQuery, response=SleepStatus, errors=COMMAND_ERRORS)
    async def sleep(raw: Request, query: SleepQuery) -> Response:
        """Pause and release memory: the KV cache at level 1, the weights too at level 2."""
        with measure("sleep"):
            await pause_engines(ctx, query.mode, clear_cache=query.level > 0)
            await ctx.engine.call("sleep", query.level)
        ctx.on_sleep(query.level)
        return json_response(to_json(SleepStatus(query.level)))

    @router.post("/release_kv_cache_memory", response=PauseStatus, errors=COMMAND_ERRORS)
    async def release_kv_cache_memory(raw: Request) -> Response:
        """Release the memory of the KV cache during a pause."""
        with measure("release_kv_cache_memory"):
            await ctx.engine.call("release_kv_cache_memory")
        ctx.on_sleep(0)
        return json_response(to_json(PauseStatus("kv_cache_released")))

    @router.post("/wake_up", query=WakeQuery, response=WakeStatus, errors=COMMAND_ERRORS)
    async def wake_up(raw: Request, query: WakeQuery) -> Response:
        """Restore memory: all of it, or what the tags name of weights, kv_cache, scheduling.
        Requests continue once everything is restored.
        """
        with measure("wake"):
            awake = all(await ctx.engine.call("wake_up", query.tags))
        if awake:
            ctx.on_sleep(None)
        return json_response(to_json(WakeStatus("awake" if awake else "sleeping", query.tags)))

    @router.get("/is_sleeping", response=IsSleeping, errors=QUERY_ERRORS)
    async def is_sleeping(raw: Request) -> Response:
        sleeping = any(await ctx.engine.call("is_sleeping"))
        return json_response(to_json(IsSleeping(sleeping)))


async def pause_engines(ctx: Context, mode: Mode, clear_cache: bool) -> None:
    """Pause the engines; returns once no step runs any more."""
    await ctx.engine.call("pause", mode, clear_cache)
    if mode != "wait":
        return
    while not all(await ctx.engine.call("drained")):
        await asyncio.sleep(POLL_INTERVAL)
    await ctx.engine.call("pause", "keep", clear_cache)
