"""The files of the web UI: plain ES modules, a style sheet, and libraries in `static/vendor`.

They are sent as they are; there is no build step. Nothing here knows a server.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
#: Bytes of all files together; a test holds it.
MOST_BYTES = 400_000

#: Nothing from elsewhere, no inline script, no frame.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class File:
    """A file and the headers that it is sent with."""

    body: bytes
    headers: dict[str, str]

    @property
    def etag(self) -> str:
        return self.headers["etag"]


def headers(content_type: str, body: bytes) -> dict[str, str]:
    """Headers of a page or file of the UI. A browser asks each time whether it has changed."""
    return {
        "content-type": content_type,
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "etag": f'"{hashlib.sha256(body).hexdigest()[:16]}"',
    }


def names() -> list[str]:
    """The files by their path below `static`."""
    return sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*") if p.is_file())


@cache
def read(name: str) -> File | None:
    """The file of this name; None: there is none."""
    if name not in names():
        return None
    path = FOLDER / name
    body = path.read_bytes()
    return File(body, headers(TYPES[path.suffix], body))
