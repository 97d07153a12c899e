"""One log line for each request, where the operator asks for it; no prompt is logged otherwise."""

from __future__ import annotations

import logging

import msgspec

from galley.config.server import ServerConfig
from galley.request import SamplingParams

logger = logging.getLogger(__name__)


def log_request(
    server: ServerConfig, request_id: str, prompt: str | list[int], params: SamplingParams
) -> None:
    """Log what a request asks, its prompt cut to `max_log_len` characters or token ids."""
    if not server.enable_log_requests:
        return
    shown = prompt[: server.max_log_len]
    logger.info(
        "Received request %s: prompt: %r, params: %s",
        request_id,
        shown,
        msgspec.json.encode(params).decode(),
    )
