"""The hooks of a SageMaker container: handlers and middleware of the model's own script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from galley.cli.serve import parser
from galley.errors import ConfigError
from galley.server.hosting import open_hosting
from galley.server.sagemaker_sessions import CLOSED, CREATED, MAX_SESSIONS, SESSION, open_sessions
from tests.deploy.promql import DEPLOY
from tests.server.served import serve

SCRIPT = """
from starlette.responses import JSONResponse

async def custom_sagemaker_ping_handler(request):
    return JSONResponse({"by": "script"})

async def invoke(request):
    return JSONResponse({"sent": await request.json()}, 201)

class Handlers:
    @staticmethod
    async def ping(request):
        return JSONResponse({"by": "class"})

async def throttle(request, call_next):
    if request.headers.get("x-user") == "hasty":
        return JSONResponse({"by": "throttle"}, 429)
    return await call_next(request)

class Around:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def sent(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-around", b"1"))
            await send(message)

        await self.app(scope, receive, sent)

async def before(request):
    request.state.seen = True

async def after(response):
    response.headers["x-after"] = "1"
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "model.py").write_text(SCRIPT)
    return {"SAGEMAKER_MODEL_PATH": str(tmp_path)}


def test_nothing_is_there_by_default(tmp_path: Path) -> None:
    assert open_hosting({"SAGEMAKER_MODEL_PATH": str(tmp_path)}) is None
    own = {"CUSTOM_FASTAPI_PING_HANDLER": "/ping", "SAGEMAKER_MODEL_PATH": str(tmp_path)}
    assert open_hosting(own) is None


def test_handlers_take_the_place_of_routes(env: dict[str, str]) -> None:
    with serve(hosting=open_hosting(env)) as served:
        assert httpx.get(f"{served.url}/ping").json() == {"by": "script"}
        assert httpx.get(f"{served.url}/health").status_code == 200
        body = {"prompt": "hi"}
        assert httpx.post(f"{served.url}/invocations", json=body).json()["choices"]
    env |= {
        "CUSTOM_FASTAPI_PING_HANDLER": "model:Handlers.ping",
        "CUSTOM_FASTAPI_INVOCATION_HANDLER": "model.py:invoke",
    }
    with serve(hosting=open_hosting(env)) as served:
        assert httpx.post(f"{served.url}/ping").json() == {"by": "class"}
        reply = httpx.post(f"{served.url}/invocations", json=body)
        assert (reply.status_code, reply.json()) == (201, {"sent": body})
        assert httpx.post(f"{served.url}/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({"CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS": "model:Around"}, "x-around"),
        ({"CUSTOM_PRE_PROCESS": "model:before", "CUSTOM_POST_PROCESS": "model:after"}, "x-after"),
    ],
)
def test_middleware(env: dict[str, str], variables: dict[str, str], header: str) -> None:
    env |= {"CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE": "model:throttle", **variables}
    with serve(hosting=open_hosting(env)) as served:
        url, body = f"{served.url}/v1/completions", {"prompt": "hi", "stream": True}
        reply = httpx.post(url, json=body)
        assert reply.headers[header] == "1"
        assert reply.text.endswith("data: [DONE]\n\n")
        hasty = httpx.post(url, json=body, headers={"x-user": "hasty"})
        assert (hasty.status_code, hasty.json()) == (429, {"by": "throttle"})
        assert header not in hasty.headers


#: What the package's decorators leave behind.
PACKAGE = {
    "handler/registry.py": """
class Registry:
    handlers = {}
    get_decorator_handler = handlers.get
handler_registry = Registry()
""",
    "fastapi/middleware/source/decorator_loader.py": """
class decorator_loader:
    throttle_middleware = pre_post_middleware = pre_fn = post_fn = None
""",
}
DECORATED = """
from model_hosting_container_standards.common.handler.registry import handler_registry
from model_hosting_container_standards.common.fastapi.middleware.source import decorator_loader
handler_registry.handlers["ping"] = Handlers.ping
decorator_loader.decorator_loader.throttle_middleware = staticmethod(throttle)
decorator_loader.decorator_loader.post_fn = staticmethod(after)
"""


def test_decorators(env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "model.py"
    script.write_text(SCRIPT + DECORATED)
    with pytest.raises(ConfigError, match=r"model\.py: No module named 'model_hosting_container_"):
        open_hosting(env)
    for name, text in PACKAGE.items():
        path = tmp_path / "model_hosting_container_standards/common" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    with serve(hosting=open_hosting(env)) as served:
        reply = httpx.get(f"{served.url}/ping")
        assert (reply.json(), reply.headers["x-after"]) == ({"by": "class"}, "1")
        assert httpx.get(f"{served.url}/ping", headers={"x-user": "hasty"}).status_code == 429


def test_sessions(tmp_path: Path) -> None:
    variables = {
        "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "true",
        "SAGEMAKER_SESSIONS_PATH": str(tmp_path / "sessions"),
    }
    hi = {"prompt": "hi"}
    with serve(sessions=open_sessions(variables)) as served:

        def post(body: dict[str, str], session: str | None = None) -> httpx.Response:
            headers = {} if session is None else {SESSION: session}
            return served.post("/invocations", body, headers=headers)

        created = post({"requestType": "NEW_SESSION"})
        name, _, expires = created.headers[CREATED].partition("; Expires=")
        assert created.text == f"Session {name} created"
        assert expires.endswith("Z")
        assert post(hi, name).json()["choices"]
        closed = post({"requestType": "CLOSE"}, name)
        assert (closed.text, closed.headers[CLOSED]) == (f"Session {name} closed", name)
        for unknown in (name, "../" + name):
            assert "session not found" in post(hi, unknown).json()["error"]["message"]
        assert post({"requestType": "CLOSE"}).status_code == 424
        assert post({"requestType": "OPEN"}).json()["error"]["param"] == "requestType"
        folder = tmp_path / "sessions" / name
        folder.mkdir()
        (folder / ".expiration_ts").write_text(json.dumps(1.0))
        assert post(hi, name).status_code == 400
        post({"requestType": "NEW_SESSION"})
        assert not folder.exists()
        for number in range(MAX_SESSIONS):
            (tmp_path / "sessions" / f"of another server {number}").mkdir()
        assert post({"requestType": "NEW_SESSION"}).status_code == 503
    with serve() as served:
        for body, session in ((hi, name), ({"requestType": "NEW_SESSION"}, None)):
            answer = post(body, session)
            assert answer.status_code == 400
            assert "SAGEMAKER_ENABLE_STATEFUL_SESSIONS" in answer.json()["error"]["message"]
    with pytest.raises(ConfigError, match="SAGEMAKER_SESSIONS_EXPIRATION"):
        open_sessions({**variables, "SAGEMAKER_SESSIONS_EXPIRATION": "soon"})


def test_flags_by_variables(tmp_path: Path) -> None:
    """SM_VLLM_* of the entry point."""
    galley = tmp_path / "galley"
    galley.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    galley.chmod(0o755)
    done = subprocess.run(
        [DEPLOY / "docker" / "sagemaker-entrypoint.sh"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "SM_VLLM_MODEL": "/opt/ml/my model",
            "SM_VLLM_MAX_MODEL_LEN": "4k",
            "SM_VLLM_ENABLE_LORA": "true",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    head, *words = done.stdout.splitlines()
    parsed = parser().parse(words)
    assert head == "serve"
    assert parsed.values == {
        "port": 8080,
        "model": "/opt/ml/my model",
        "max_model_len": 4000,
        "enable_lora": True,
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("model:nothing", "no attribute 'nothing'"),
        ("absent.py:f", "absent.py"),
        ("no_such_module:f", "No module named"),
        ("model:SCRIPT_NAME", "SCRIPT_NAME"),
    ],
)
def test_what_cannot_be_loaded_stops_the_start(env: dict[str, str], value: str, words: str) -> None:
    with pytest.raises(ConfigError, match="CUSTOM_FASTAPI_PING_HANDLER=") as caught:
        open_hosting({**env, "CUSTOM_FASTAPI_PING_HANDLER": value})
    assert words in caught.value.message
