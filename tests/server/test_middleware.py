"""Keys, request ids, load, CORS and HTTP metrics."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import openai
import pytest

from galley.config.server import ServerConfig
from tests.server.served import MODEL, Served, serve
from tests.server.test_disconnect import wait_for

HI = [{"role": "user", "content": "hi"}]
#: Every route: method, path, body, whether a key guards it.
ROUTES: list[tuple[str, str, Any, bool]] = [
    ("GET", "/v1/models", None, True),
    ("POST", "/v1/chat/completions", {"messages": HI}, True),
    ("POST", "/v1/completions", {"prompt": "hi"}, True),
    ("POST", "/tokenize", {"prompt": "hi"}, False),
    ("POST", "/detokenize", {"tokens": [5]}, False),
    ("GET", "/health", None, False),
    ("GET", "/ping", None, False),
    ("POST", "/ping", None, False),
    ("GET", "/version", None, False),
    ("GET", "/load", None, False),
    ("GET", "/metrics", None, False),
    ("GET", "/docs", None, False),
    ("GET", "/openapi.json", None, False),
]


def ask(served: Served, method: str, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.request(method, served.url + path, json=body, headers=headers, timeout=30)


def test_keys() -> None:
    """Checklist 183, 226, 227: which path needs a key, and that several keys work."""
    with serve(ServerConfig(api_key=("secret", "other"))) as served:
        for method, path, body, guarded in ROUTES:
            bare = ask(served, method, path, body)
            assert bare.status_code == (401 if guarded else 200), path
            if guarded:
                assert bare.json()["error"]["type"] == "Unauthorized"
                assert bare.headers["www-authenticate"] == "Bearer"
            for key in ("secret", "other"):
                good = ask(served, method, path, body, authorization=f"Bearer {key}")
                assert good.status_code == 200, path
        for wrong in ("Bearer no", "Bearer", "Basic secret", "secret", "Bearer secret2", ""):
            assert ask(served, "GET", "/v1/models", None, authorization=wrong).status_code == 401
        # An unknown path needs a key as well.
        assert ask(served, "GET", "/v1/nothing", None).status_code == 401
        assert ask(served, "GET", "/v2/nothing", None).status_code == 401
        assert ask(served, "GET", "/nothing", None).status_code == 404
        assert ask(served, "OPTIONS", "/v1/models", None).status_code == 405
        claude = ask(served, "POST", "/v1/messages", {"messages": HI})
        assert (claude.status_code, claude.json()["type"]) == (401, "error")
        assert claude.json()["error"]["type"] == "authentication_error"
        models = served.client(api_key="other").models.list()
        assert [m.id for m in models.data] == [MODEL]
        with pytest.raises(openai.AuthenticationError):
            served.client(api_key="wrong").models.list()


def test_keys_hold_behind_a_path_prefix() -> None:
    with serve(ServerConfig(api_key=("secret",), root_path="/llm")) as served:
        assert ask(served, "GET", "/v1/models", None).status_code == 401
        assert ask(served, "GET", "/llm/v1/models", None).status_code == 401
        key = {"authorization": "Bearer secret"}
        assert ask(served, "GET", "/v1/models", None, **key).status_code == 200
        assert ask(served, "GET", "/llm/v1/models", None, **key).status_code == 200
        assert ask(served, "GET", "/llm/health", None).status_code == 200


def test_request_ids(served: Served) -> None:
    """http_behaviours 7."""
    body = {"messages": HI}
    with serve(ServerConfig(enable_request_id_headers=True)) as telling:
        path = "/v1/chat/completions"
        own = ask(telling, "POST", path, body, **{"X-Request-Id": "mine"})
        assert own.headers["x-request-id"] == "mine"
        assert own.json()["id"] == "chatcmpl-mine"
        new = ask(telling, "POST", path, body)
        assert len(new.headers["x-request-id"]) == 32
        assert new.json()["id"] == "chatcmpl-" + new.headers["x-request-id"]
        assert ask(telling, "GET", "/nothing", None).headers["x-request-id"]
        odd = httpx.get(
            telling.url + "/health", headers={"X-Request-Id": "a b\xe9".encode("latin-1")}
        )
        assert len(odd.headers["x-request-id"]) == 32
    silent = ask(served, "POST", "/v1/completions", {"prompt": "a", "request_id": "given"})
    assert "x-request-id" not in silent.headers
    assert silent.json()["id"] == "cmpl-given"
    assert len(ask(served, "POST", "/v1/completions", {"prompt": "a"}).json()["id"]) == 37
    long = ask(served, "POST", "/v1/completions", {"prompt": "a"}, **{"X-Request-Id": "x" * 300})
    assert long.json()["error"]["param"] == "X-Request-Id"


def test_load() -> None:
    with serve(ServerConfig(enable_server_load_tracking=True)) as served:
        served.engine.hold = True

        def load() -> int:
            return int(served.get("/load").json()["server_load"])

        waiting = [
            threading.Thread(target=served.post, args=("/v1/completions", {"prompt": "hi"}))
            for _ in range(3)
        ]
        assert load() == 0
        for thread in waiting:
            thread.start()
        wait_for(lambda: load() == 3)
        served.engine.hold = False
        for thread in waiting:
            thread.join(30)
        assert load() == 0
    with serve() as served:
        assert served.get("/load").json() == {"server_load": 0}


def test_cors() -> None:
    with serve(ServerConfig(allowed_origins=("https://a.example",), api_key=("k",))) as served:
        allowed = ask(served, "GET", "/v1/models", None, origin="https://a.example")
        # The browser must be able to read that the key is missing.
        assert allowed.status_code == 401
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = ask(served, "GET", "/health", None, origin="https://b.example")
        assert "access-control-allow-origin" not in other.headers
        preflight = ask(
            served,
            "OPTIONS",
            "/v1/chat/completions",
            None,
            origin="https://a.example",
            **{"access-control-request-method": "POST"},
        )
        assert preflight.status_code == 200
        assert "POST" in preflight.headers["access-control-allow-methods"]
    with serve() as served:
        plain = ask(served, "GET", "/health", None, origin="https://a.example")
        assert "access-control-allow-origin" not in plain.headers


def test_http_metrics() -> None:
    with serve() as served:
        for _ in range(3):
            served.post("/v1/completions", {"prompt": "hi"})
        served.post("/v1/completions", {"prompt": 5})
        stream = served.post("/v1/completions", {"prompt": "hi", "stream": True})
        served.get("/health")
        served.get("/nothing")
        labels = 'handler="/v1/completions",method="POST"'
        assert served.metric(f'http_requests_total{{{labels},status="2xx"}}') == 4
        assert served.metric(f'http_requests_total{{{labels},status="4xx"}}') == 1
        none = 'handler="none",method="GET",status="4xx"'
        assert served.metric(f"http_requests_total{{{none}}}") == 1
        assert served.metric(f"http_request_duration_seconds_count{{{labels}}}") == 5
        assert served.metric("http_request_duration_highr_seconds_count") == 6
        size = served.metric('http_response_size_bytes_sum{handler="/v1/completions"}')
        assert size > len(stream.content)
        with pytest.raises(KeyError):
            served.metric('http_requests_total{handler="/health",method="GET",status="2xx"}')
