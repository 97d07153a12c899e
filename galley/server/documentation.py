"""/openapi.json, the page /docs (also /redoc) that shows it without other sites' scripts, and
/docs-site, the documentation where it is built."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from galley.server.errors import json_response
from galley.server.openapi import Document
from galley.server.page import docs_page, plain_page
from galley.server.router import Router

#: Made by `make docs-site`.
SITE = Path(__file__).with_name("site")


def site() -> list[Mount]:
    """The documentation at /docs-site; none where it is not built."""
    if not (SITE / "index.html").exists():
        return []
    return [Mount("/docs-site", StaticFiles(directory=SITE, html=True))]


def routes(document: Document) -> Router:
    router = Router()
    page = docs_page(f"{document.root_path}/openapi.json")

    @router.get("/openapi.json", hidden=True)
    async def openapi(raw: Request) -> Response:
        return json_response(document.json)

    @router.get("/docs", hidden=True)
    async def docs(raw: Request) -> Response:
        return HTMLResponse(page)

    @router.get("/docs/oauth2-redirect", hidden=True)
    async def oauth2_redirect(raw: Request) -> Response:
        return HTMLResponse(plain_page("OAuth2", "OAuth2 is not used here."))

    @router.get("/redoc", hidden=True)
    async def redoc(raw: Request) -> Response:
        return HTMLResponse(page)

    return router
