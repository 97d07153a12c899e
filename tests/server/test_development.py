"""Routes of VLLM_SERVER_DEV_MODE=1 and --profiler-config (checklist 173 to 175, 233, 234)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from galley.config.resolve import from_kwargs
from galley.errors import ConfigError
from galley.observability.perfetto import trace_events
from galley.observability.step_trace import STEP_DTYPE
from tests.launcher.serving import Server
from tests.server.served import Served
from tests.server.test_disconnect import wait_for

DEVELOPMENT = (
    *("GET /server_info", "GET /get_world_size", "GET /is_paused", "POST /collective_rpc"),
    *("POST /reset_prefix_cache", "POST /reset_mm_cache", "POST /reset_encoder_cache"),
    *("POST /pause", "POST /resume", "POST /abort_requests", "POST /sleep", "POST /wake_up"),
    *("POST /release_kv_cache_memory", "GET /is_sleeping"),
    *("POST /start_profile", "POST /stop_profile"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles") / "made"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    config = {"profiler": "torch", "torch_profiler_dir": str(folder)}
    flags = ["--profiler-config", json.dumps(config), "--api-key", "secret", "--hf-token", "secret"]
    server = Server(*flags, env={"VLLM_SERVER_DEV_MODE": "1"})
    yield server
    server.close()


def post(server: Server, path: str, **options: Any) -> httpx.Response:
    return httpx.post(server.url + path, timeout=30, **options)


def complete(server: Server, **body: Any) -> httpx.Response:
    body = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0, **body}
    headers = {"authorization": "Bearer secret"}
    return post(server, "/v1/completions", json=body, headers=headers)


@pytest.mark.parametrize("route", DEVELOPMENT)
def test_they_are_absent_by_default(served: Served, route: str) -> None:
    method, path = route.split()
    assert httpx.request(method, served.url + path).status_code == 404


def test_server_info_keeps_secrets(server: Server) -> None:
    text = httpx.get(f"{server.url}/server_info").text
    assert "secret" not in text
    info = httpx.get(f"{server.url}/server_info", params={"config_format": "json"}).json()
    assert info["vllm_config"]["model"]["served_model_name"] == ["SmolLM2-135M-Instruct"]
    assert info["vllm_env"]["VLLM_SERVER_DEV_MODE"] == "1"
    assert isinstance(json.loads(text)["vllm_config"], str)
    bad = httpx.get(f"{server.url}/server_info", params={"config_format": "xml"})
    assert bad.status_code == 400
    assert httpx.get(f"{server.url}/get_world_size").json() == {"world_size": 1}


def test_collective_rpc_runs_what_is_harmless(server: Server) -> None:
    answer = post(server, "/collective_rpc", json={"method": "memory"}).json()
    assert answer["results"][0]["weights"] > 10e6
    for method in ("shutdown", "execute", "__class__", "reset", "allocate_kv"):
        refused = post(server, "/collective_rpc", json={"method": method})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "method"
    assert complete(server).status_code == 200


def test_the_prefix_cache_is_forgotten(server: Server) -> None:
    def cached() -> int:
        name = "vllm:prefix_cache_hits_total"
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return int(float(next(x for x in lines if x.startswith(name)).rpartition(" ")[2]))

    body = {"prompt": "word " * 100, "max_tokens": 1}
    complete(server, **body)
    before = cached()
    complete(server, **body)
    assert cached() > before
    assert post(server, "/reset_prefix_cache").json() == {"success": True}
    before = cached()
    complete(server, **body)
    assert cached() == before
    assert post(server, "/reset_prefix_cache?reset_external=true").status_code == 400
    assert post(server, "/reset_mm_cache").status_code == 200


def test_paused_and_resumed(server: Server) -> None:
    texts: list[str] = []

    def ask() -> None:
        answer = complete(server, max_tokens=400, ignore_eos=True)
        texts.append(answer.json()["choices"][0]["text"])

    whole = complete(server, max_tokens=400, ignore_eos=True).json()["choices"][0]["text"]
    thread = threading.Thread(target=ask)
    thread.start()
    running = lambda: running_requests(server)  # noqa: E731
    wait_for(lambda: running() == 1)
    # Between two steps, whenever it is asked for.
    assert not any(post(server, "/reset_prefix_cache").json()["success"] for _ in range(20))
    assert post(server, "/pause?mode=keep&clear_cache=false").status_code == 200
    assert httpx.get(f"{server.url}/is_paused").json() == {"is_paused": True}
    assert post(server, "/reset_prefix_cache").json() == {"success": False}
    # A request that comes now waits.
    late = threading.Thread(target=ask)
    late.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert post(server, "/resume").status_code == 200
    thread.join(30)
    late.join(30)
    assert texts == [whole, whole]
    assert post(server, "/pause?mode=wait").status_code == 200
    assert post(server, "/resume").status_code == 200
    assert post(server, "/pause?mode=later").status_code == 400


def running_requests(server: Server) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    name = "vllm:num_requests_running"
    return float(next(x for x in lines if x.startswith(name)).rpartition(" ")[2])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/pause", {}),
        ("/abort_requests", {}),
        ("/abort_requests", {"request_ids": ["other", "cmpl-mine"]}),
    ],
)
def test_aborted(server: Server, path: str, body: dict[str, Any]) -> None:
    found: list[dict[str, Any]] = []

    def ask() -> None:
        mine = complete(server, max_tokens=900, ignore_eos=True, n=2, request_id="mine")
        found.append(mine.json())

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: running_requests(server) == 2)
    post(server, "/abort_requests", json={"request_ids": ["other", "1_cmpl"]})
    assert running_requests(server) == 2
    assert post(server, path, json=body).status_code == 200
    thread.join(30)
    assert [choice["finish_reason"] for choice in found[0]["choices"]] == ["abort", "abort"]
    post(server, "/resume")
    assert complete(server).status_code == 200


def test_a_profile_opens_in_perfetto(server: Server, folder: Path) -> None:
    assert post(server, "/stop_profile").status_code == 400
    assert post(server, "/start_profile").status_code == 200
    complete(server)
    [path] = post(server, "/stop_profile").json()["files"]
    assert Path(path).parent == folder
    events = json.loads(Path(path).read_text())["traceEvents"]
    steps = [e for e in events if e["name"].startswith("step ")]
    assert len(steps) == 20
    parts = [e for e in events if e["name"] in ("schedule", "execute", "commit")]
    assert len(parts) == 60
    assert all(e["dur"] >= 0 for e in steps + parts)
    assert {e["ph"] for e in events} == {"M", "X", "C"}
    body = {"profile_prefix": "../x", "delay_iterations": 5, "max_iterations": 3}
    assert post(server, "/start_profile", json=body).status_code == 200
    complete(server)
    [path] = post(server, "/stop_profile").json()["files"]
    assert Path(path).parent == folder
    few = [e for e in json.loads(Path(path).read_text())["traceEvents"] if e["ph"] == "X"]
    assert len({e["name"] for e in few if e["name"].startswith("step ")}) == 3


def test_slices_of_a_step_nest() -> None:
    import numpy as np

    record = np.zeros(1, STEP_DTYPE)
    record["step"], record["begin"], record["submit"] = 7, 1.0, 1.5
    record["sampled"], record["end"] = 3.0, 3.25
    whole, *parts = [e for e in trace_events(record, 1) if e["ph"] == "X"]
    assert (whole["name"], whole["ts"], whole["dur"]) == ("step 7", 1e6, 2.25e6)
    assert [p["dur"] for p in parts] == [0.5e6, 1.5e6, 0.25e6]
    assert sum(p["dur"] for p in parts) == whole["dur"]


def test_a_profiler_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="torch_profiler_dir"):
        from_kwargs({"profiler_config": {"profiler": "torch"}}, "server", {})
    with pytest.raises(ConfigError, match="'proton_dir'"):
        from_kwargs({"profiler_config": {"proton_dir": "x"}}, "server", {})
