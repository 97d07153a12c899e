"""Lightweight clients that stream completions and chats over plain sockets.

Clients can also read slowly or disconnect early.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass
class Answer:
    """Answer as received by a client.

    Attributes:
        times: `time.monotonic` of each piece of text; `sent` is that of the request.
        finish: finish_reason, or None if the client left or the server refused.
    """

    status: int = 0
    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        return self.times[0] - self.sent if self.times else float("nan")

    @property
    def gaps(self) -> list[float]:
        """Seconds between texts."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


async def stream(
    port: int,
    body: dict[str, Any],
    *,
    leave_after: int | None = None,
    pause: float = 0.0,
    key: str | None = None,
    path: str = COMPLETIONS,
    into: Answer | None = None,
) -> Answer:
    """One streamed completion.

    Args:
        into: the answer to fill, for a caller that watches it.
        path: `COMPLETIONS` or `CHAT`.
        leave_after: close the connection after this many texts; 0 = before the first.
        pause: seconds to sleep after each read (a slow reader).
        key: API key.
    """
    answer = Answer() if into is None else into
    answer.sent = time.monotonic()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, limit=2048 if pause else 2**16
    )
    try:
        writer.write(_request(path, body, key))
        await writer.drain()
        if leave_after == 0:
            await asyncio.sleep(0.05)
            return answer
        head = await reader.readuntil(b"\r\n\r\n")
        answer.status = int(head.split(b" ", 2)[1])
        if answer.status != 200:
            answer.error = (await reader.read(2000)).decode(errors="replace")
            return answer
        async for line in _lines(reader, 512 if pause else 2**16, pause):
            if line.startswith(b"data: {"):
                _note(answer, json.loads(line[6:]))
            elif line.startswith(b"data: [DONE]"):
                break
            if leave_after is not None and len(answer.times) >= leave_after:
                break
        return answer
    finally:
        writer.close()


async def _lines(reader: asyncio.StreamReader, piece: int, pause: float) -> AsyncIterator[bytes]:
    """Yield lines as they arrive; sleeps `pause` seconds after each read."""
    rest = b""
    while data := await reader.read(piece):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
        if pause:
            await asyncio.sleep(pause)


def _note(answer: Answer, event: dict[str, Any]) -> None:
    if "error" in event:
        answer.error = str(event["error"])
        return
    for choice in event["choices"]:
        if choice["text"] if "text" in choice else choice["delta"].get("content"):
            answer.times.append(time.monotonic())
        answer.finish = choice["finish_reason"] or answer.finish


def _request(path: str, body: dict[str, Any], key: str | None) -> bytes:
    payload = json.dumps({"stream": True, **body}).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
        "Connection: close",
        *([f"Authorization: Bearer {key}"] if key else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + payload
