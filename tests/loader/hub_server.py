"""A local hub: the few routes that `huggingface_hub` requests, over a folder of files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

#: Repositories with this in their name need the token.
PRIVATE, TOKEN = "private", "hf_secret"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    """/api/models/NAME[/revision/REV], /api/models/NAME/tree/REV, /NAME/resolve/REV/FILE."""

    repositories: dict[str, dict[str, bytes]]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests read what was asked from `asked`."""

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        if PRIVATE in path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
            return
        for name, files in self.repositories.items():
            if path.startswith(f"/api/models/{name}"):
                self._send_listing(path, name, files, with_body)
                return
            prefix = f"/{name}/resolve/"
            if path.startswith(prefix):
                _, _, file = path.removeprefix(prefix).partition("/")
                self._send_file(files.get(file), with_body)
                return
        self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)

    def _send_listing(self, path: str, name: str, files: dict[str, bytes], with_body: bool) -> None:
        if "/revision/" in path and not path.endswith(("/main", COMMIT)):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
            return
        if "/tree/" in path:
            answer: object = [
                {"type": "file", "path": file, "size": len(raw), "oid": _etag(raw)}
                for file, raw in files.items()
            ]
        else:
            siblings = [{"rfilename": file} for file in files]
            answer = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": []}
        self._send(200, json.dumps(answer).encode(), {}, with_body)

    def _send_file(self, raw: bytes | None, with_body: bool) -> None:
        if raw is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        else:
            headers = {"ETag": f'"{_etag(raw)}"', "X-Repo-Commit": COMMIT}
            self._send(200, raw, headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _etag(raw: bytes) -> str:
    return hashlib.sha1(raw).hexdigest()


@contextmanager
def hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """(URL, paths requested so far) of a hub with these repositories: name → file → content."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"repositories": repositories, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
