"""The API server process as the launcher runs it, with no engine beside it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from galley.engine.control import Channel, EnginesLost, Failed, Serving
from tests.server.test_disconnect import wait_for

ROOT = Path(__file__).parents[2]
CHILD = """
import socket, sys
from galley.config.resolve import from_kwargs
from galley.config.server import ServerConfig
from galley.engine.control import Channel, Failed
from galley.errors import SetupError
from galley.frontend.remote_client import LauncherLink
from galley.server.main import run
listening, control = (socket.socket(fileno=int(a)) for a in sys.argv[1:3])
channel = Channel(control)
try:
    link, config = LauncherLink(channel, 0), from_kwargs({{}}, "server")
    run(listening, link, config, ServerConfig({options}), {{}})
except SetupError as e:
    channel.send(Failed(e.message, 2))
print(*sorted(m for m in ("torch", "transformers", "pandas", "scipy") if m in sys.modules))
"""


@dataclass
class Process:
    channel: Channel
    child: subprocess.Popen[str]
    url: str

    def wait(self, kind: type) -> object:
        while True:
            for message in self.channel.receive():
                if isinstance(message, kind):
                    return message


@contextmanager
def process(options: str = "", **env: str) -> Iterator[Process]:
    sock = socket.create_server(("127.0.0.1", 0))
    ours, theirs = Channel.pair()
    fds = (sock.fileno(), theirs.fileno())
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(options=options), *map(str, fds)],
        pass_fds=fds,
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    theirs.close()
    try:
        yield Process(ours, child, f"http://127.0.0.1:{sock.getsockname()[1]}")
    finally:
        child.kill()
        child.communicate()
        ours.close()
        sock.close()


def test_it_serves_waits_for_an_engine_and_ends_in_good_order() -> None:
    with process("enable_server_load_tracking=True", VLLM_API_KEY="secret") as server:
        assert isinstance(server.wait(Serving), Serving)
        assert httpx.get(server.url + "/health").status_code == 503
        assert httpx.get(server.url + "/v1/models").status_code == 401
        key = {"authorization": "Bearer secret"}
        models = httpx.get(server.url + "/v1/models", headers=key).json()["data"]
        assert [m["id"] for m in models] == ["SmolLM2-135M-Instruct"]
        assert "vllm:num_requests_running" in httpx.get(server.url + "/metrics").text
        # A request waits for the engine, and gets an end when the server ends.
        answers: list[httpx.Response] = []
        body = {"prompt": "hi", "max_tokens": 2}

        def ask() -> None:
            url = server.url + "/v1/completions"
            answers.append(httpx.post(url, json=body, headers=key, timeout=120))

        thread = threading.Thread(target=ask)
        thread.start()
        metric = 'http_requests_total{handler="/v1/models"'
        wait_for(lambda: metric in httpx.get(server.url + "/metrics").text)
        wait_for(lambda: httpx.get(server.url + "/load").json()["server_load"] == 1)
        server.child.send_signal(signal.SIGTERM)
        output, _ = server.child.communicate(timeout=60)
        assert server.child.returncode == 0
        thread.join(60)
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["type"] == "ServiceUnavailableError"
        assert "Traceback" not in output
        assert output.splitlines()[-1] == "", "heavy modules were imported"


def test_without_any_engine_to_come_requests_fail() -> None:
    with process() as server:
        server.wait(Serving)
        server.channel.send(EnginesLost("the engine cannot be kept alive"))
        body = {"prompt": "hi"}
        wait_for(lambda: httpx.post(server.url + "/v1/completions", json=body).status_code == 503)
        answer = httpx.post(server.url + "/v1/completions", json=body).json()
        assert "cannot be kept alive" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        ("ssl_certfile='/nowhere.pem'", {}, "TLS"),
        ("chat_template='/nowhere.jinja'", {}, "--chat-template /nowhere.jinja"),
        ("", {"VLLM_MAX_N_SEQUENCES": "many"}, "VLLM_MAX_N_SEQUENCES"),
        ("", {"VLLM_LOGGING_LEVEL": "LOUD"}, "VLLM_LOGGING_LEVEL"),
    ],
)
def test_what_is_wrong_is_said_before_serving(
    options: str, env: dict[str, str], words: str
) -> None:
    with process(options, **env) as server:
        failed = server.wait(Failed)
        assert isinstance(failed, Failed)
        assert words in failed.message
