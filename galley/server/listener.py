"""uvicorn in this process: reports when it serves, drains and shuts down on signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from galley.config.server import ServerConfig
from galley.errors import ConfigError
from galley.server.http import limited_protocol

logger = logging.getLogger(__name__)

#: Seconds that answers get to end after their requests were aborted.
ABORT_GRACE = 2


class Listener(uvicorn.Server):
    """Serves until SIGTERM or SIGINT.

    Args:
        on_serving: called once connections are accepted.
        drain: seconds that requests in flight get to finish, before `on_drained`.
        on_draining: called when new requests are to be refused.
        is_busy: whether requests are in flight.
        on_drained: aborts the requests that are still in flight.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_serving: Callable[[], None],
        drain: int,
        on_draining: Callable[[], None],
        is_busy: Callable[[], bool],
        on_drained: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_serving = on_serving
        self._drain = drain
        self._on_draining = on_draining
        self._is_busy = is_busy
        self._on_drained = on_drained
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_serving()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_drained()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Shut down on a signal; uvicorn's own handler would raise it again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """The first signal shuts down gracefully, the second at once."""
        if self.should_exit or self._draining is not None:
            self.should_exit = self.force_exit = True
        elif self._drain:
            self._draining = asyncio.ensure_future(self._wait_for_requests())
        else:
            self.should_exit = True

    async def _wait_for_requests(self) -> None:
        """Refuse new requests until all are answered or the time is over."""
        self._on_draining()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain
        while self._is_busy() and loop.time() < end:
            await asyncio.sleep(0.05)
        self.should_exit = True


def uvicorn_config(app: ASGIApp, server: ServerConfig, keep_alive: int) -> uvicorn.Config:
    """uvicorn's settings.

    Args:
        keep_alive: seconds that an idle connection is kept.

    Raises:
        ConfigError: a TLS file or cipher cannot be used.
    """
    config = uvicorn.Config(
        app,
        loop="none",
        http=limited_protocol(server.h11_max_incomplete_event_size, server.h11_max_header_count),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=_log_level(server),
        access_log=not server.disable_uvicorn_access_log,
        server_header=False,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=ABORT_GRACE,
        backlog=2048,
        **_tls(server),
    )
    # It comes while another process shows the progress of loading, and would break that line.
    logging.getLogger("uvicorn.error").addFilter(_says_more_than_started)
    try:
        config.load()
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"TLS cannot be set up: {e}", field="ssl_certfile") from e
    return config


def _log_level(server: ServerConfig) -> int:
    """--uvicorn-log-level, and at least --log-level."""
    own: int = uvicorn.config.LOG_LEVELS[server.uvicorn_log_level]
    return max(own, logging.getLevelNamesMapping()[server.log_level or "NOTSET"])


def _says_more_than_started(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Started server process")


def _tls(server: ServerConfig) -> dict[str, Any]:
    if server.ssl_certfile is None:
        return {}
    options: dict[str, Any] = {
        "ssl_certfile": server.ssl_certfile,
        "ssl_keyfile": server.ssl_keyfile,
        "ssl_ca_certs": server.ssl_ca_certs,
        "ssl_cert_reqs": server.ssl_cert_reqs,
    }
    if server.ssl_ciphers is not None:
        options["ssl_ciphers"] = server.ssl_ciphers
    return options
