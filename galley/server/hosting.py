"""Hooks of a container that SageMaker hosts: handlers and middleware of the model's own script.

As model_hosting_container_standards has them, by the same environment variables:

    SAGEMAKER_MODEL_PATH                        folder of the model's script (/opt/ml/model)
    CUSTOM_SCRIPT_FILENAME                      the script in it (model.py)
    CUSTOM_FASTAPI_PING_HANDLER                 `async f(request)` in place of /ping
    CUSTOM_FASTAPI_INVOCATION_HANDLER           in place of /invocations
    CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE          `async f(request, call_next)`, or an ASGI class,
                                                around all others
    CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS  the same, inside all others
    CUSTOM_PRE_PROCESS, CUSTOM_POST_PROCESS     `async f(request)` and `async f(response)` in place
                                                of the one before

A value is `FILE.py:NAME` (FILE in the folder, or absolute), `MODULE:NAME`, or `model:NAME` for the
script; NAME may be `Class.method`. A value that is a path (`/ping`) means the route itself. Without
a variable, the hook is what the script registered by a decorator of that package
(`custom_ping_handler`, `custom_invocation_handler`, `custom_middleware`, `input_formatter`,
`output_formatter`), which must be installed then; without one, `custom_sagemaker_ping_handler` and
`custom_sagemaker_invocation_handler` of the script.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response

from galley.errors import ConfigError

Hook = Callable[..., Any]
#: Path → variable, name in the script, name in the package's registry.
_HANDLERS = {
    "/ping": ("CUSTOM_FASTAPI_PING_HANDLER", "custom_sagemaker_ping_handler", "ping"),
    "/invocations": (
        "CUSTOM_FASTAPI_INVOCATION_HANDLER",
        "custom_sagemaker_invocation_handler",
        "invoke",
    ),
}
#: Modules of the package that hold what its decorators registered.
_PACKAGE = "model_hosting_container_standards.common"
_HANDLER_REGISTRY = f"{_PACKAGE}.handler.registry"
_MIDDLEWARE_REGISTRY = f"{_PACKAGE}.fastapi.middleware.source.decorator_loader"
_THROTTLE = "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE"
_PRE_POST = "CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS"
_PRE, _POST = "CUSTOM_PRE_PROCESS", "CUSTOM_POST_PROCESS"
VARIABLES = (*(names[0] for names in _HANDLERS.values()), _THROTTLE, _PRE_POST, _PRE, _POST)


class Hosting:
    """The hooks that an environment asks for. Raises ConfigError for one that cannot be loaded."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._folder = Path(env.get("SAGEMAKER_MODEL_PATH") or "/opt/ml/model")
        self._script = self._folder / (env.get("CUSTOM_SCRIPT_FILENAME") or "model.py")
        self._modules: dict[Path, ModuleType] = {}
        hooks = {name: self._hook(name, env[name]) for name in VARIABLES if env.get(name)}
        script = self._load_script() if self._script.is_file() else None
        self.handlers: dict[str, Hook] = {}
        for path, (variable, name, registered) in _HANDLERS.items():
            handler = hooks.get(variable) or _decorated(registered) or getattr(script, name, None)
            if handler is not None:
                self.handlers[path] = handler
        middleware = getattr(sys.modules.get(_MIDDLEWARE_REGISTRY), "decorator_loader", None)
        self.throttle = hooks.get(_THROTTLE) or getattr(middleware, "throttle_middleware", None)
        before = hooks.get(_PRE) or getattr(middleware, "pre_fn", None)
        after = hooks.get(_POST) or getattr(middleware, "post_fn", None)
        self.pre_post = hooks.get(_PRE_POST) or getattr(middleware, "pre_post_middleware", None)
        if self.pre_post is None and (before or after):
            self.pre_post = _around(before, after)

    def install(self, app: Starlette) -> None:
        """Put the middleware of the hooks around and inside that of `app`, and replace its routes
        by the handlers.
        """
        if self.throttle is not None:
            app.user_middleware.insert(0, _middleware(self.throttle))
        if self.pre_post is not None:
            app.user_middleware.append(_middleware(self.pre_post))
        for path, handler in self.handlers.items():
            methods = ["GET", "POST"] if path == "/ping" else ["POST"]
            routes = app.router.routes
            routes[:] = [route for route in routes if getattr(route, "path", None) != path]
            app.add_route(path, handler, methods=methods, include_in_schema=False)

    @property
    def is_empty(self) -> bool:
        return not (self.handlers or self.throttle or self.pre_post)

    def _hook(self, variable: str, value: str) -> Hook | None:
        if value.startswith("/") and ":" not in value:
            return None  # the server's own route
        place, _, name = value.rpartition(":")
        try:
            found: Any = self._module(place)
            for part in name.split("."):
                found = getattr(found, part)
        except Exception as e:  # a user's module may raise anything while it is imported
            raise ConfigError(f"{variable}={value}: {e or type(e).__name__}", field=variable) from e
        if not callable(found):
            raise ConfigError(f"{variable}={value}: it cannot be called.", field=variable)
        hook: Hook = found
        return hook

    def _load_script(self) -> ModuleType:
        try:
            return self._module_of(self._script)
        except Exception as e:  # as above
            raise ConfigError(f"{self._script}: {e or type(e).__name__}") from e

    def _module(self, place: str) -> ModuleType:
        if place == "model":
            return self._module_of(self._script)
        if place.endswith(".py"):
            return self._module_of(self._folder / place)
        return importlib.import_module(place)

    def _module_of(self, path: Path) -> ModuleType:
        """The module of a file, executed once."""
        if path not in self._modules:
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise FileNotFoundError(f"{path} is no Python file")
            module = importlib.util.module_from_spec(spec)
            if str(path.parent) not in sys.path:
                sys.path.append(str(path.parent))  # for what it imports from beside it
            spec.loader.exec_module(module)
            self._modules[path] = module
        return self._modules[path]


def _decorated(name: str) -> Hook | None:
    """The handler that a decorator of the package registered."""
    registry = getattr(sys.modules.get(_HANDLER_REGISTRY), "handler_registry", None)
    handler: Hook | None = registry.get_decorator_handler(name) if registry else None
    return handler


def open_hosting(env: Mapping[str, str]) -> Hosting | None:
    """The hooks; None where there are none. Raises ConfigError."""
    hosting = Hosting(env)
    return None if hosting.is_empty else hosting


def _middleware(hook: Hook) -> Middleware:
    if inspect.isclass(hook):
        return Middleware(cast(Any, hook))
    return Middleware(BaseHTTPMiddleware, dispatch=hook)


def _around(before: Hook | None, after: Hook | None) -> Hook:
    """A middleware of a function on the request and one on the response; each may return None."""

    async def dispatch(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if before is not None:
            request = await before(request) or request
        response = await call_next(request)
        if after is not None:
            response = await after(response) or response
        return response

    return dispatch
