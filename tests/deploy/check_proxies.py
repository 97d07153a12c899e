"""A server behind real nginx, haproxy and Envoy: streams, the allow-list, limits, keys, aborts.

Not a part of the gate: `make check-deploy`.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from benchmarks.clients import stream
from benchmarks.served import MODEL, SMALL, Server, serve
from tests.deploy.promql import DEPLOY
from tests.deploy.tools import BIN, free_port, run, wait_until

KEY = "secret"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(*SMALL, "--api-key", KEY) as server:
        yield server


@pytest.fixture(scope="module", params=["nginx", "haproxy", "envoy"])
def proxy(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of the proxy, which runs the shipped configuration but for names and ports."""
    folder = tmp_path_factory.mktemp(request.param)
    port = free_port()
    source = {
        "nginx": "nginx/nginx.conf",
        "haproxy": "haproxy/haproxy.cfg",
        "envoy": "envoy/envoy.yaml",
    }[request.param]
    text = (DEPLOY / source).read_text()
    text = text.replace("galley:8000", f"127.0.0.1:{server.port}")
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}")
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}")
    text = text.replace("0.0.0.0, port_value: 8080", f"127.0.0.1, port_value: {port}")
    text = text.replace(
        "address: galley, port_value: 8000", f"address: 127.0.0.1, port_value: {server.port}"
    )
    text = re.sub(r"/tmp/nginx", f"{folder}/nginx", text)
    text = re.sub(r"/dev/std(out|err)", f"{folder}/\\1.log", text)
    config = folder / "config"
    config.write_text(text)
    if request.param == "nginx":
        run("nginx", "-t", "-e", folder / "start.log", "-c", config)
        command = ["nginx", "-e", folder / "start.log", "-c", config, "-g", "daemon off;"]
    elif request.param == "envoy":
        config = config.rename(folder / "envoy.yaml")
        run(BIN / "envoy", "--mode", "validate", "-c", config)
        command = [str(BIN / "envoy"), "-c", str(config), "--concurrency", "1"]
    else:
        run("haproxy", "-c", "-f", config)
        command = ["haproxy", "-db", "-f", config]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: reachable(url), 30, "the proxy answers")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def reachable(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.HTTPError:
        return False


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def test_tokens_come_as_they_are_made(proxy: str) -> None:
    """Checklist 179, 228: nothing is held back."""
    body = {"model": MODEL, "prompt": "Light", "max_tokens": 400, "ignore_eos": True}
    answer = asyncio.run(stream(port_of(proxy), body, key=KEY))
    assert answer.finish == "length"
    took = answer.times[-1] - answer.sent
    moments = {round(time / 0.02) for time in answer.times}
    assert len(moments) > min(took / 0.02, len(answer.times)) / 4, "tokens came in lumps"
    assert answer.ttft < took / 3
    assert max(answer.gaps) < took / 3


def test_a_real_client_and_keys(proxy: str) -> None:
    client = openai.OpenAI(base_url=f"{proxy}/v1", api_key=KEY, max_retries=0)
    assert [m.id for m in client.models.list().data] == [MODEL]
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=12,
    )
    assert "Paris" in (chat.choices[0].message.content or "")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{proxy}/v1", api_key="no", max_retries=0).models.list()


def test_all_else_is_forbidden(proxy: str) -> None:
    """Checklist 228: a blocked path gives 403, whatever the key."""
    key = {"authorization": f"Bearer {KEY}"}
    for path in (
        *("/metrics", "/tokenize", "/detokenize", "/version", "/load", "/docs", "/openapi.json"),
        *("/invocations", "/collective_rpc", "/sleep", "/start_profile", "/v1/load_lora_adapter"),
        *("/v1/models/x", "/", "/v1", "//metrics", "/%6detrics", "/v1/../metrics"),
    ):
        for method in ("GET", "POST"):
            reply = httpx.request(method, proxy + path, headers=key)
            assert reply.status_code in (400, 403), f"{method} {path}: {reply.status_code}"


def test_the_server_notices_a_client_that_left(proxy: str, server: Server) -> None:
    def aborted() -> float:
        return server.metrics().sum("vllm:request_success_total", finished_reason="abort")

    before = aborted()
    body = {"model": MODEL, "prompt": "Light", "max_tokens": 1500, "ignore_eos": True}
    asyncio.run(stream(port_of(proxy), body, leave_after=5, key=KEY))
    wait_until(lambda: aborted() > before, 20, "the request is aborted")


def test_a_hasty_client_is_slowed_and_others_are_not(proxy: str) -> None:
    def status(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{proxy}/v1/models", headers=headers).status_code

    time.sleep(2)
    with ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(lambda _: status(KEY), range(160)))
    assert 429 in seen
    assert 200 in seen
    assert status("another") == 401


def test_a_body_that_is_too_large(proxy: str, server: Server) -> None:
    time.sleep(3)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    try:
        reply = httpx.post(
            f"{proxy}/v1/completions", content=b" " * (65 << 20), headers=headers, timeout=60
        )
    except httpx.WriteError:
        return
    assert reply.status_code == 413
    assert server.status("/health") == 200


def test_an_open_port_is_listed(tmp_path: Path, server: Server) -> None:
    """Checklist 241: what `ss` sees of the running server is one TCP port and private sockets."""
    pids = server.pids()
    lines = [
        line
        for line in run("ss", "-H", "-ltunxp").splitlines()
        if any(f"pid={pid}," in line for pid in pids)
    ]
    tcp = [line for line in lines if line.startswith(("tcp", "udp"))]
    assert len(tcp) == 1
    assert f"127.0.0.1:{server.port} " in tcp[0]
    unix = [line.split()[4] for line in lines if line.startswith("u_")]
    assert unix
    for path in unix:
        folder = Path(path).parent
        assert folder.name.startswith("galley-")
        assert folder.stat().st_mode & 0o777 == 0o700
