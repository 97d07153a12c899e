"""`galley replay`: shows a recording of the live view in a browser, without an engine."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from galley import __version__, ui
from galley.cli.parser import CommandParser, make
from galley.errors import ConfigError

_JSON = "application/json"
#: The format of recordings that this version reads; `Recording.file` in galley/ui writes it.
FORMAT = 1


@dataclass(frozen=True)
class ReplayFlags:
    """Options"""

    port: int = 0
    """Port on the loopback interface; 0 picks a free one."""


def parser() -> CommandParser:
    return CommandParser(
        "replay",
        "Show a recording of the live view (saved at /ui) in a browser. Ctrl-C ends. "
        "https://ui.perfetto.dev opens the same file.",
        [ReplayFlags],
        positionals=(("FILE", "recording, as the page saves it"),),
        examples=("galley replay galley-2026-04-01T120000.json",),
    )


def main(argv: list[str]) -> int:
    reader = parser()
    parsed = reader.parse(argv)
    flags = make(ReplayFlags, reader.split(parsed.values))
    if not parsed.positionals:
        raise ConfigError("FILE is missing: a recording that the page /ui has saved.")
    if not 0 <= flags.port <= 65_535:
        raise ConfigError(f"--port must be in 0 … 65535, got {flags.port}.", field="port")
    path = Path(parsed.positionals[0])
    handler = partial(Handler, path.name, read_recording(path))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", flags.port), handler)
    except OSError as e:
        raise ConfigError(f"--port {flags.port} cannot be bound: {e.strerror}.") from e
    print(f"galley: open http://localhost:{server.server_port}/ui/", file=sys.stderr, flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def read_recording(path: Path) -> bytes:
    """The contents of a recording. Raises ConfigError if it is not one."""
    try:
        body = path.read_bytes()
        found = json.loads(body)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}.") from e
    except ValueError as e:
        raise ConfigError(f"{path} is not JSON: {e}.") from e
    recording = found.get("galley") if isinstance(found, dict) else None
    if not isinstance(recording, dict) or recording.get("format") != FORMAT:
        raise ConfigError(f"{path} is not a recording of the live view (format {FORMAT}).")
    return body


class Handler(BaseHTTPRequestHandler):
    """The pages of the web UI over a recording."""

    protocol_version = "HTTP/1.1"

    def __init__(self, name: str, recording: bytes, *args: object) -> None:
        facts = {"version": __version__, "recording": name}
        self._data = {
            "/ui/api/server": json.dumps(facts).encode(),
            "/ui/api/recording": recording,
        }
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in ("/", "/ui"):
            self._send(302, b"", {"location": "/ui/"})
        elif path in self._data:
            body = self._data[path]
            self._send(200, body, ui.headers(_JSON, body))
        elif (found := ui.read(path.removeprefix("/ui/") or "index.html")) is not None:
            self._send(200, found.body, found.headers)
        else:
            self._send(404, b"not found\n", {"content-type": "text/plain"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests of the browser are of no interest."""
