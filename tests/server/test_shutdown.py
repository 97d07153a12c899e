"""--shutdown-timeout (checklist 254), --uds and --middleware."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from galley.config.server import ServerConfig
from galley.errors import ConfigError
from galley.server.app import _add_custom
from tests.server.served import REPLY, Served, serve
from tests.server.test_disconnect import wait_for

BODY: dict[str, Any] = {"prompt": "hi", "max_tokens": 64}


def stop(served: Served) -> None:
    served.loop.call_soon_threadsafe(served.listener._stop)


def is_up(served: Served) -> bool:
    try:
        served.get("/health")
    except httpx.TransportError:
        return False
    return True


class Asker:
    """A request in a thread of its own."""

    def __init__(self, served: Served, body: dict[str, Any]) -> None:
        self.text: str | None = None
        self.cut = False
        self._ask = lambda: served.post("/v1/completions", body).text
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_for(lambda: served.engine.num_unfinished == 1)

    def _run(self) -> None:
        try:
            self.text = self._ask()
        except httpx.TransportError:
            self.cut = True

    def wait(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_it_drains() -> None:
    with serve(ServerConfig(shutdown_timeout=30)) as served:
        served.engine.hold = True
        asker = Asker(served, {**BODY, "stream": True})
        stop(served)
        wait_for(lambda: served.get("/health").status_code == 503)
        refused = served.post("/v1/completions", BODY)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.headers["connection"] == "close"
        assert served.get("/metrics").status_code == 200
        served.engine.hold = False
        asker.wait()
        assert asker.text is not None
        assert asker.text.endswith("data: [DONE]\n\n")
        wait_for(lambda: not is_up(served))


@pytest.mark.parametrize(("timeout", "signals"), [(1, 1), (600, 2)])
def test_the_time_is_bounded_and_a_second_signal_ends_it(timeout: int, signals: int) -> None:
    with serve(ServerConfig(shutdown_timeout=timeout)) as served:
        served.engine.hold = True
        asker = Asker(served, BODY)
        stop(served)
        wait_for(lambda: served.get("/health").status_code == 503)
        if signals == 2:
            stop(served)
        wait_for(lambda: not is_up(served))
    asker.wait()


class Stamp:
    """A middleware as a user writes one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-stamp", b"class")]
            await send(message)

        await self.app(scope, receive, stamped)


async def refuse(request: Any, call_next: Any) -> Any:
    if request.headers.get("x-forbidden"):
        return Response(status_code=403)
    return await call_next(request)


def test_a_request_that_fails_is_under_way_no_more() -> None:
    """Else a drain would wait for it until its time is over."""

    def broken(request: Any) -> list[int]:
        raise RuntimeError("a defect of the server")

    config = ServerConfig(enable_server_load_tracking=True)
    with serve(config, script=broken) as served:
        assert served.post("/v1/completions", BODY).status_code == 500
        assert served.get("/load").json() == {"server_load": 0}


def test_middleware_of_the_user() -> None:
    names = (f"{__name__}.Stamp", f"{__name__}.refuse")
    with serve(ServerConfig(middleware=names)) as served:
        assert served.get("/v1/models").headers["x-stamp"] == "class"
        assert served.get("/v1/models", headers={"x-forbidden": "1"}).status_code == 403
        # A stream keeps its order, although the function's frame holds parts back.
        text = "".join(
            event.choices[0].text
            for event in served.client().completions.create(model="tiny", stream=True, **BODY)
        )
        assert text == REPLY


@pytest.mark.parametrize("path", ["nowhere.Thing", "math.pi", "os.nothing", "plain"])
def test_middleware_that_cannot_be(path: str) -> None:
    with pytest.raises(ConfigError, match="--middleware"):
        _add_custom(Starlette(), path)
