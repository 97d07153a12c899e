"""The hooks of a SageMaker container: handlers and middleware of the model's own script."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest

from galley.cli.serve import parser
from galley.errors import ConfigError
from galley.server.hosting import open_hosting
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
