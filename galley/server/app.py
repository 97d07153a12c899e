"""The ASGI application, built from its parts."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount

from galley.errors import ConfigError
from galley.server import documentation, errors, openapi
from galley.server.access_log import AccessLog
from galley.server.context import Context
from galley.server.middleware import (
    GUARDED,
    ApiKeys,
    Callers,
    Gate,
    HttpMetering,
    IgnoredFields,
    RequestIds,
    RootPath,
)
from galley.server.router import Router
from galley.server.routes import (
    adapters,
    anthropic,
    chat,
    completions,
    development,
    generative_scoring,
    health,
    home,
    invocations,
    metrics,
    models,
    pausing,
    profile,
    responses,
    scale_out,
    tokenize,
    ui,
)

if TYPE_CHECKING:
    from galley.observability.http_metrics import HttpMetrics

Family = Callable[[Context], Router]
#: An open set: a family is a file with `routes(ctx)`.
FAMILIES: tuple[Family, ...] = (
    home.routes,
    health.routes,
    metrics.routes,
    models.routes,
    adapters.routes,
    development.routes,
    pausing.routes,
    profile.routes,
    tokenize.routes,
    ui.routes,
)
#: Families that a server with --runner pooling lacks; it has others instead.
GENERATING: tuple[Family, ...] = (
    chat.routes,
    completions.routes,
    responses.routes,
    anthropic.routes,
    generative_scoring.routes,
    invocations.routes,
    scale_out.routes,
)


def build_app(ctx: Context, http_metrics: HttpMetrics | None = None) -> Starlette:
    """Routes, error answers and middleware; no request is served and nothing is started here."""
    server = ctx.server
    routers = [family(ctx) for family in families_of(ctx)]
    mounts: list[Mount] = []
    if not server.disable_fastapi_docs:
        document = openapi.Document(
            [route for router in routers for route in router.routes],
            models=() if ctx.any_model_name or ctx.adapters else ctx.model_names,
            guarded=GUARDED if server.api_key else (),
            root_path=server.root_path or "",
        )
        routers.append(documentation.routes(document))
        mounts = documentation.site()
    app = Starlette(routes=[*(route for router in routers for route in router.routes), *mounts])
    paths = [route.path for router in routers for route in router.routes]
    errors.install(app, server.log_error_stack, paths)
    formats = {r.prefix: r.error_format for r in routers if r.error_format is not None}
    # The last one added is the outermost.
    app.add_middleware(IgnoredFields)
    app.add_middleware(Gate, load=ctx.load, formats=formats)
    if server.api_key:
        app.add_middleware(ApiKeys, keys=server.api_key, formats=formats)
    fairness = ctx.config.scheduler.fairness_by
    if fairness not in ("none", "user"):
        app.add_middleware(Callers, by=fairness)
    if server.allowed_origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.allowed_origins,
            allow_credentials=server.allow_credentials,
            allow_methods=server.allowed_methods,
            allow_headers=server.allowed_headers,
        )
    if server.enable_request_id_headers:
        app.add_middleware(RequestIds)
    if http_metrics is not None:
        app.add_middleware(HttpMetering, metrics=http_metrics)
    if ctx.config.observability.otlp_traces_endpoint:
        from galley.observability.tracing import TraceContext

        app.add_middleware(TraceContext)
    for path in server.middleware:
        _add_custom(app, path)
    if not server.disable_uvicorn_access_log:
        app.add_middleware(AccessLog, with_ids=server.enable_log_requests)
    if server.root_path:
        app.add_middleware(RootPath, root_path=server.root_path)
    if ctx.hosting is not None:
        ctx.hosting.install(app)
    return app


def families_of(ctx: Context) -> tuple[Family, ...]:
    """The families of the server's kind. A request tries their routes in order: first come those
    that compute."""
    if ctx.renders_only or ctx.server.tokens_only:
        return (scale_out.routes, *FAMILIES)
    if ctx.config.model.runner == "pooling":
        # They need numpy, which other servers do without.
        from galley.server.routes import embeddings, pooling, pooling_invocations, scoring

        return (
            embeddings.routes,
            pooling.routes,
            scoring.routes,
            pooling_invocations.routes,
            *FAMILIES,
        )
    return (*GENERATING, *FAMILIES)


def _add_custom(app: Starlette, path: str) -> None:
    """Add the middleware that `--middleware` names. Raises ConfigError."""
    module, _, name = path.rpartition(".")
    try:
        middleware = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(f"--middleware {path}: {e}", field="middleware") from e
    if inspect.isclass(middleware):
        app.add_middleware(cast(Any, middleware))
    elif inspect.iscoroutinefunction(middleware):
        app.add_middleware(BaseHTTPMiddleware, dispatch=middleware)
    else:
        raise ConfigError(
            f"--middleware {path} is neither a class nor an async function.", field="middleware"
        )
