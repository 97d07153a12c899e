"""A tiny OpenAI-compatible server in a thread: streams as many words as requested."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FakeServer:
    """Behaviour, and recorded requests.

    Attributes:
        usage: send token counts at the end of a stream.
        cached: prompt tokens reported as cached; None: not reported.
        delay: seconds before each token.
        fail: answer requests with status 500.
        drop: close the connection after this many tokens.
        bodies, headers: of the requests, in order of arrival.
        most: maximum number of concurrent requests.
    """

    usage: bool = True
    cached: int | None = None
    delay: float = 0.0
    fail: bool = False
    drop: int | None = None
    chunked: bool = True
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    running: int = 0
    most: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        length = 0
        for line in head.split("\r\n"):
            if line.lower().startswith("content-length:"):
                length = int(line.split(":")[1])
        body = await reader.readexactly(length)
        if path.endswith("completions"):
            self.headers.append(head)
            await self.complete(path, json.loads(body), writer)
        else:
            self.plain(writer, self.get(path))
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    def get(self, path: str) -> bytes:
        if path == "/metrics":
            labels = '{engine="0",model_name="fake"}'
            hits = 3 * len(self.bodies)
            return (
                f"vllm:prefix_cache_queries_total{labels} {10.0 * len(self.bodies)}\n"
                f"vllm:prefix_cache_hits_total{labels} {hits:.1f}\n"
            ).encode()
        return json.dumps({"data": [{"id": "fake", "root": "fake-root"}]}).encode()

    def plain(self, writer: asyncio.StreamWriter, body: bytes, status: str = "200 OK") -> None:
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    async def complete(self, path: str, body: dict[str, Any], writer: Any) -> None:
        self.bodies.append(body)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.fail:
                self.plain(writer, b'{"error": {"message": "no"}}', "500 Oops")
                return
            count = body.get("max_tokens") or body["max_completion_tokens"]
            usage = {"prompt_tokens": 7, "completion_tokens": count}
            if self.cached is not None:
                usage["prompt_tokens_details"] = {"cached_tokens": self.cached}
            if not body.get("stream"):
                whole = {"choices": [{"text": "word " * count}], "usage": usage}
                self.plain(writer, json.dumps(whole).encode())
                return
            await self.stream("chat" in path, count, usage, writer)
        finally:
            self.running -= 1

    async def stream(self, chat: bool, count: int, usage: dict[str, Any], writer: Any) -> None:
        coding = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{coding}\r\n".encode())
        for i in range(count):
            if i == self.drop:
                return
            await asyncio.sleep(self.delay)
            said = {"delta": {"content": "word "}} if chat else {"text": "word "}
            self.event(writer, {"choices": [said]})
        self.event(writer, {"choices": [{"text": "", "finish_reason": "length"}]})
        if self.usage:
            self.event(writer, {"choices": [], "usage": usage})
        self.piece(writer, b"data: [DONE]\n\n")
        if self.chunked:
            writer.write(b"0\r\n\r\n")

    def event(self, writer: Any, data: dict[str, Any]) -> None:
        self.piece(writer, f"data: {json.dumps(data)}\n\n".encode())

    def piece(self, writer: Any, data: bytes) -> None:
        if self.chunked:
            data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
        writer.write(data)


@contextlib.contextmanager
def fake_server(**what: Any) -> Iterator[FakeServer]:
    """Serve on a free port until the context exits."""
    server = FakeServer(**what)
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def listen() -> None:
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        started.set()

    def work() -> None:
        loop.run_until_complete(listen())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def _serve_forever(port: int) -> None:
    server = FakeServer()
    listener = await asyncio.start_server(server.handle, "127.0.0.1", port)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    # As a command: --port N, other options are ignored.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_forever(int(sys.argv[sys.argv.index("--port") + 1])))
