"""/ui: pages that show the engine at work. Read-only; see docs/ui.md."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from functools import cache
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from galley import ui
from galley.errors import Forbidden, NotFound
from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.event_response import HEADERS
from galley.server.live_feed import LiveFeed
from galley.server.router import Router
from galley.server.self_check import checks
from galley.server.settings_report import settings
from galley.server.ui_facts import facts
from galley.ui import guide

if TYPE_CHECKING:
    from galley.server.operation_report import OperationMeter

#: Headers with which a proxy passes on a request of somebody else.
_FORWARDED = ("x-forwarded-for", "x-forwarded-host", "x-real-ip", "forwarded")


class OperationsQuery(msgspec.Struct):
    """`limits`: measure the machine first."""

    limits: bool = False


def routes(ctx: Context) -> Router:
    router = Router()
    if not ctx.server.ui:
        return router
    feed = LiveFeed(ctx.engine)

    @cache
    def meter() -> OperationMeter:
        # It imports models and kernels, which servers do without otherwise.
        from galley.server.operation_report import OperationMeter

        return OperationMeter(ctx)

    root = (ctx.server.root_path or "").rstrip("/")

    def refuse_others(raw: Request) -> None:
        if not ctx.server.ui_public and not is_local(raw):
            raise Forbidden(
                "/ui is for browsers on the server's machine, at localhost; --ui-public opens it "
                "to others."
            )

    @router.get("/ui", hidden=True)
    async def start(raw: Request) -> Response:
        refuse_others(raw)
        return RedirectResponse(f"{root}/ui/")

    @router.get("/ui/api/live", hidden=True)
    async def live(raw: Request) -> Response:
        """Frames of the live view, as server-sent events, until the client leaves."""
        refuse_others(raw)
        feed.check()
        headers = {name.decode(): value.decode() for name, value in HEADERS}
        return StreamingResponse(events(feed), headers=headers)

    @router.get("/ui/api/server", hidden=True)
    async def server(raw: Request) -> Response:
        """Facts about the server, and how it runs."""
        refuse_others(raw)
        return json_response(msgspec.json.encode(facts(ctx)))

    @router.get("/ui/api/operation", hidden=True)
    async def operation(raw: Request) -> Response:
        """Checklists held against how the server runs, and its configuration."""
        refuse_others(raw)
        found = {"checks": checks(ctx), "settings": settings(ctx)}
        return json_response(msgspec.json.encode(found))

    @router.get("/ui/api/operations", query=OperationsQuery, hidden=True)
    async def operations(raw: Request, query: OperationsQuery) -> Response:
        """Times of the operations of the next steps."""
        refuse_others(raw)
        report = await meter().report(query.limits)
        return json_response(msgspec.json.encode(report))

    @router.get("/ui/guide", hidden=True)
    async def guide_start(raw: Request) -> Response:
        refuse_others(raw)
        return RedirectResponse(f"{root}/ui/guide/")

    @router.get("/ui/guide/{name:path}", hidden=True)
    async def guide_page(raw: Request) -> Response:
        refuse_others(raw)
        return answer(raw, guide.read(raw.path_params["name"] or "index.md"))

    @router.get("/ui/{name:path}", hidden=True)
    async def file(raw: Request) -> Response:
        refuse_others(raw)
        return answer(raw, ui.read(raw.path_params["name"] or "index.html"))

    return router


def answer(raw: Request, found: ui.File | None) -> Response:
    if found is None:
        raise NotFound("there is no such page; /ui/ has links to all.")
    if raw.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=found.headers)
    return Response(found.body, headers=found.headers)


async def events(feed: LiveFeed) -> AsyncIterator[bytes]:
    async for frame in feed.frames():
        yield b"data: %b\n\n" % frame


def is_local(raw: Request) -> bool:
    """Whether a request comes from a browser on this machine, and asks for this machine.

    The name that it asks for matters, too: a page of another site could have its own name resolve
    to 127.0.0.1. A proxy on this machine passes on requests of others.
    """
    if any(name in raw.headers for name in _FORWARDED):
        return False
    client = raw.client
    return (client is None or _is_loopback(client.host)) and _is_loopback(raw.url.hostname or "")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
