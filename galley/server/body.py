"""Reading a request's JSON body, within limits."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from galley.errors import InvalidRequest, PayloadTooLarge
from galley.server.disconnect import ClientDisconnected


async def read_json_body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes of it.

    Raises:
        InvalidRequest: the content type is not JSON's.
        PayloadTooLarge: more than `limit` bytes, announced or sent.
        ClientDisconnected: the client went away while sending.
    """
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(
            "Unsupported Media Type: Only 'application/json' is allowed.", field="Content-Type"
        )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large(limit)
            parts.append(part)
    except ClientDisconnect as e:
        raise ClientDisconnected from e
    return parts[0] if len(parts) == 1 else b"".join(parts)


def too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request body is larger than the {limit} bytes allowed (--max-request-body-bytes)."
    )
