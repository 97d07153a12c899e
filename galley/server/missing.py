"""Help for requests to paths that are not served: the nearest route, or the API that is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_CHAT = "use /v1/chat/completions"
#: Paths of other servers' own APIs, and what serves the same here.
_OTHERS = {
    "/api/chat": f"Ollama's API is not served; {_CHAT}.",
    "/api/generate": "Ollama's API is not served; use /v1/completions.",
    "/api/tags": "Ollama's API is not served; use /v1/models.",
    "/api/embed": "Ollama's API is not served; use /v1/embeddings.",
    "/api/embeddings": "Ollama's API is not served; use /v1/embeddings.",
    "/completion": "llama-server's own API is not served; use /v1/completions.",
    "/props": "llama-server's own API is not served; use /v1/models and /version.",
    "/slots": "llama-server's own API is not served; use /metrics.",
    "/generate": "TGI's own API is not served; use /v1/completions.",
    "/generate_stream": "TGI's own API is not served; use /v1/completions with `stream`.",
}
#: Routes of the other kind of server.
_POOLING = ("/v1/embeddings", "/embeddings", "/v1/rerank", "/v1/score", "/pooling", "/v2/embed")


def advice(path: str, served: Iterable[str]) -> str:
    """A sentence that leads on from `path`, or ""; `served` are the paths of the routes."""
    routes = list(served)
    path = path.rstrip("/") or "/"
    if path in _OTHERS:
        return _OTHERS[path]
    if path in _POOLING and path not in routes:
        return "This server generates text; vectors need a server with --runner pooling."
    for candidate in ("/v1" + path, path.replace("/v1/v1/", "/v1/")):
        if candidate in routes:
            return f"Did you mean {candidate}?"
    near = difflib.get_close_matches(path[:100], routes, 1, 0.85)
    return f"Did you mean {near[0]}?" if near else ""
