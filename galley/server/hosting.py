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
a variable, `custom_sagemaker_ping_handler` and `custom_sagemaker_invocation_handler` of the script
are used, if it has them.
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
_HANDLERS = {
    "/ping": ("CUSTOM_FASTAPI_PING_HANDLER", "custom_sagemaker_ping_handler"),
    "/invocations": ("CUSTOM_FASTAPI_INVOCATION_HANDLER", "custom_sagemaker_invocation_handler"),
}
_THROTTLE = "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE"
_PRE_POST = "CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS"
_PRE, _POST = "CUSTOM_PRE_PROCESS", "CUSTOM_POST_PROCESS"
VARIABLES = (*(variable for variable, _ in _HANDLERS.values()), _THROTTLE, _PRE_POST, _PRE, _POST)


class Hosting:
    """The hooks that an environment asks for. Raises ConfigError for one that cannot be loaded."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._folder = Path(env.get("SAGEMAKER_MODEL_PATH") or "/opt/ml/model")
        self._script = self._folder / (env.get("CUSTOM_SCRIPT_FILENAME") or "model.py")
        self._modules: dict[Path, ModuleType] = {}
        hooks = {name: self._hook(name, env[name]) for name in VARIABLES if env.get(name)}
        script = self._module_of(self._script) if self._script.is_file() else None
        self.handlers: dict[str, Hook] = {}
        for path, (variable, name) in _HANDLERS.items():
            handler = hooks.get(variable) or getattr(script, name, None)
            if handler is not None:
                self.handlers[path] = handler
        self.throttle = hooks.get(_THROTTLE)
        self.pre_post = hooks.get(_PRE_POST)
        if self.pre_post is None and (hooks.get(_PRE) or hooks.get(_POST)):
            self.pre_post = _around(hooks.get(_PRE), hooks.get(_POST))

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
