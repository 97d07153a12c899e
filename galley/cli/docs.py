"""`galley docs`: shows the documentation, from this machine alone."""

from __future__ import annotations

import functools
import http.server
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galley.cli.parser import CommandParser, make
from galley.errors import ConfigError

#: Made by `make docs-site`; part of a wheel that is built after it.
SITE = Path(__file__).parents[1] / "server" / "site"


@dataclass(frozen=True)
class DocsFlags:
    """Options"""

    port: int = 8080
    """Port to listen on, of the loopback interface; 0 picks a free one."""
    browser: bool = False
    """Open a browser."""


def parser() -> CommandParser:
    return CommandParser(
        "docs",
        "Show the documentation at a port of this machine, without a network.",
        [DocsFlags],
        examples=("galley docs", "galley docs --port 0 --browser"),
    )


def main(argv: list[str]) -> int:
    flags = make(DocsFlags, parser().read(argv))
    if not (SITE / "index.html").exists():
        raise ConfigError("the documentation is not built here. In a checkout: `make docs-site`.")
    try:
        server = site_server(SITE, flags.port)
    except OSError as e:
        raise ConfigError(f"--port {flags.port}: {e.strerror}.", field="port") from e
    with server:
        url = f"http://127.0.0.1:{server.server_port}/"
        print(f"documentation at {url} (Ctrl-C ends it)", flush=True)
        if flags.browser:
            import webbrowser

            webbrowser.open(url)
        server.serve_forever()
    return 0


def site_server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of the files of `folder` on the loopback interface."""
    handler = functools.partial(_Quiet, directory=str(folder))
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Files, without a line in the terminal for each."""

    def log_message(self, format: str, *args: Any) -> None:
        pass
