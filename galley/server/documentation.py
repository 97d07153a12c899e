"""/openapi.json and its pages /docs and /redoc, whose scripts come from a public CDN."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from galley.server.errors import json_response
from galley.server.openapi import Document
from galley.server.router import Router

_PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Galley - {title}</title>
{head}
</head>
<body style="margin: 0">
{body}
</body>
</html>
"""
_CDN = "https://cdn.jsdelivr.net/npm"
_SWAGGER_HEAD = f'<link rel="stylesheet" href="{_CDN}/swagger-ui-dist@5/swagger-ui.css">'
_SWAGGER_BODY = f"""<div id="swagger-ui"></div>
<script src="{_CDN}/swagger-ui-dist@5/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({{
  url: "{{url}}", dom_id: "#swagger-ui", deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
}})
</script>"""
_REDOC_BODY = f"""<redoc spec-url="{{url}}"></redoc>
<script src="{_CDN}/redoc@2/bundles/redoc.standalone.js"></script>"""


def routes(document: Document) -> Router:
    router = Router()
    url = f"{document.root_path}/openapi.json"

    @router.get("/openapi.json", hidden=True)
    async def openapi(raw: Request) -> Response:
        return json_response(document.json)

    @router.get("/docs", hidden=True)
    async def swagger_ui(raw: Request) -> Response:
        body = _SWAGGER_BODY.replace("{url}", url)
        return HTMLResponse(_PAGE.format(title="Swagger UI", head=_SWAGGER_HEAD, body=body))

    @router.get("/docs/oauth2-redirect", hidden=True)
    async def oauth2_redirect(raw: Request) -> Response:
        return HTMLResponse(_PAGE.format(title="OAuth2", head="", body="OAuth2 is not used here."))

    @router.get("/redoc", hidden=True)
    async def redoc(raw: Request) -> Response:
        body = _REDOC_BODY.replace("{url}", url)
        return HTMLResponse(_PAGE.format(title="ReDoc", head="", body=body))

    return router
