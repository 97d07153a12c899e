"""/: a page that says which model is served, and takes a question."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from galley import __version__
from galley.server.context import Context
from galley.server.page import home_page
from galley.server.router import Router


def routes(ctx: Context) -> Router:
    router = Router()

    @router.get("/", hidden=True)
    async def home(raw: Request) -> Response:
        server = ctx.server
        generates = ctx.config.model.runner != "pooling" and ctx.tokenizer is not None
        page = home_page(
            __version__,
            ctx.model_names[0],
            (server.root_path or "").rstrip("/"),
            documented=not server.disable_fastapi_docs,
            generates=generates,
            ui=server.ui,
        )
        return HTMLResponse(page)

    return router
