"""/ui: its files, who may see them, and what the live view shows of a real engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.served import MODEL, SMALL, Server
from benchmarks.served import serve as serve_model
from galley import ui
from galley.config.flags import flags_of
from galley.config.resolve import SECTIONS
from galley.config.server import ServerConfig
from galley.errors import ConfigError
from galley.server import operation_report
from galley.ui import guide
from tests.server.served import Served, serve
from tests.small_model import small_model

HERE = {"host": "localhost:8000"}


def test_pages_are_served_with_a_strict_policy(served: Served) -> None:
    assert served.get("/ui", follow_redirects=True).headers["content-type"].startswith("text/html")
    for name in ["", *ui.names()]:
        reply = served.get(f"/ui/{name}")
        assert reply.status_code == 200, name
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        again = served.get(f"/ui/{name}", headers={"if-none-match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for absent in ("nothing.js", "../__init__.py", "%2e%2e/__init__.py", "vendor"):
        assert served.get(f"/ui/{absent}").status_code == 404, absent


def test_the_files_are_few_and_name_no_other_site() -> None:
    files = {name: (ui.FOLDER / name).read_bytes() for name in ui.names()}
    assert sum(map(len, files.values())) < ui.MOST_BYTES
    listed = files["vendor/LICENSES.txt"].decode()
    for name, body in files.items():
        if name.startswith("vendor/"):
            of_package = hashlib.sha256(body).hexdigest() in listed
            assert of_package or name == "vendor/LICENSES.txt", name
        elif name.endswith((".html", ".css")):
            assert b"//" not in re.sub(rb"/\*.*?\*/", b"", body), name
        # Inline styles and scripts would be blocked.
        assert not re.search(rb"<script>|<style|\son\w+=\"", body), name


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (HERE, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "elsewhere.example"}, 403),
        ({**HERE, "x-forwarded-for": "203.0.113.9"}, 403),
        ({**HERE, "forwarded": "for=203.0.113.9"}, 403),
    ],
)
def test_only_this_machine_sees_it(served: Served, headers: dict[str, str], status: int) -> None:
    for path in ("/ui/", "/ui/api/server"):
        reply = served.get(path, headers=headers)
        assert reply.status_code == status, path
        if status == 403:
            assert "--ui-public" in reply.json()["error"]["message"]


def test_it_can_be_opened_to_others_and_left_out() -> None:
    with serve(ServerConfig(ui_public=True)) as served:
        assert served.get("/ui/", headers={"host": "elsewhere.example"}).status_code == 200
        assert '"/ui"' in served.get("/").text
    with serve(ServerConfig(ui=False)) as served:
        assert served.get("/ui/").status_code == 404
        assert served.get("/ui/api/server").status_code == 404
        assert '"/ui"' not in served.get("/").text
    with pytest.raises(ConfigError, match="--ui-public contradicts --no-ui"):
        ServerConfig(ui=False, ui_public=True)


def test_what_is_dangerous_is_named() -> None:
    with serve(ServerConfig(host=None, ui_public=True, trust_request_chat_template=True)) as served:
        found = served.get("/ui/api/operation").json()["checks"]
    states = {check["name"]: check["state"] for check in found}
    assert states["API key"] == states["This page"] == "bad"
    assert states["Interface"] == states["TLS"] == states["Templates of requests"] == "warn"
    flags = {f"--{flag}" for check in found for flag in re.findall(r"--([\w-]+)", check["by"])}
    known = {"--" + f.name.replace("_", "-") for c in (ServerConfig, *SECTIONS.values())
             for f in flags_of(c)}  # fmt: skip
    assert flags - {"--no-ui"} <= known


def test_the_guide_is_rendered() -> None:
    text = "# Fit & size\n\n## What *it* takes\n\n| a | b |\n|:--|--:|\n| 1 | 2 |\n\n"
    title, page = guide.render(f"{text}[life](life.md#a) `galley/llm.py`", "../")
    assert title == "Fit & size"
    assert '<a href="life.html#a">' in page
    assert '<a href="../source/galley/llm.py.html"><code>galley/llm.py</code></a>' in page
    assert '<h2 id="what-it-takes">' in page
    assert '<td>1</td>\n<td class="n">2</td>' in page
    assert not re.search(r"<script>|<style|\sstyle=", page)


@pytest.fixture(scope="module")
def real() -> Iterator[Server]:
    model = (str(small_model()), "--served-model-name", MODEL)
    with serve_model(*model, *SMALL, "--api-key", "secret") as server:
        yield server


@pytest.fixture
def client(real: Server) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer secret"}
    with httpx.Client(base_url=real.url, headers=headers, timeout=60) as client:
        yield client


def test_data_need_the_key_and_pages_do_not(real: Server) -> None:
    assert real.status("/ui/") == 200
    for path in ("/ui/api/server", "/ui/api/live", "/ui/api/operation"):
        assert real.status(path) == 401, path


def test_checks_and_settings_are_those_of_the_server(client: httpx.Client) -> None:
    found = client.get("/ui/api/operation").json()
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["API key"]["state"] == checks["Interface"]["state"] == "good"
    assert checks["Requests in flight"]["state"] == "warn"
    settings = {one["flag"]: (one["value"], one["source"]) for one in found["settings"]}
    assert settings["--api-key"] == ("***", "command line")
    assert settings["--max-model-len"] == ("2048", "command line")
    assert settings["--max-num-batched-tokens"] == ("2048", "chosen")
    assert settings["--root-path"] == ("", "default")


def test_operations_of_running_steps(client: httpx.Client) -> None:
    """Each is timed, and its work is that of the steps' rows."""
    assert client.get("/ui/api/operations", params={"limits": "x"}).status_code == 400
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 1500, "ignore_eos": True}
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}):
        found = client.get("/ui/api/operations", params={"limits": 1}).json()
    assert found["steps"] > 0
    assert (found["rows"], found["tokens"], found["why"]) == (1, 1, "")
    assert len(found["lines"]) + 1 == len(found["seconds"]) > 20
    kinds = {one["label"]: one for one in found["operations"]}
    [head] = [one for label, one in kinds.items() if label.endswith("576→49152")]
    assert head["bytes"] >= 49152 * 576  # 8 bits, and scales
    assert head["operations"] == 2 * 49152 * 576
    assert head["least"] >= head["bytes"] / found["limits"]["read"]
    assert kinds["sample"]["least"] is None
    assert sum(one["seconds"] for one in kinds.values()) == pytest.approx(sum(found["seconds"]))


@pytest.mark.parametrize("timed", [True, False])
def test_operations_are_waited_for_as_long_as_it_takes(
    served: Served, monkeypatch: pytest.MonkeyPatch, timed: bool
) -> None:
    asked: list[str] = []

    async def call(method: str, *args: Any) -> list[Any]:
        asked.append(method)
        return [{"steps": [], "timings": []} if method == "operation_times" else timed]

    monkeypatch.setattr(served.engine, "call", call)
    monkeypatch.setattr(operation_report, "SECONDS", 3 * operation_report.INTERVAL)
    assert served.get("/ui/api/operations").json()["steps"] == 0
    first, *waits, last = asked
    assert (first, last) == ("profile_operations", "operation_times")
    assert set(waits) == {"has_timed_operations"}
    assert (len(waits) == 1) == timed


@pytest.mark.alone
def test_the_live_view_outlives_its_engine(real: Server, client: httpx.Client) -> None:
    """A request's rows and blocks are seen; the engine is killed; the request goes on."""
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 800, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    with (
        client.stream("POST", "/v1/completions", json=body) as answer,
        client.stream("GET", "/ui/api/live") as stream,
    ):
        lines = (json.loads(line[6:]) for line in stream.iter_lines() if line)
        frames = (frame["engines"][0] if "engines" in frame else frame for frame in lines)
        view = next(f for f in frames if f["running"] and f["rows"]["counts"])
        [row] = view["running"]
        assert len(row["blocks"][0]) == -(-row["num_computed"] // view["limits"]["block_size"])
        assert len(set(row["blocks"][0])) == view["blocks_used"]
        assert view["rows"]["handles"][-1] == row["handle"]
        assert view["columns"]["num_output"][-1] == 1
        [engine] = [
            p for p in real.pids() if b"EngineCore" in Path(f"/proc/{p}/cmdline").read_bytes()
        ]
        os.kill(engine, signal.SIGKILL)
        # An engine that comes back between two frames was never seen down.
        again = next(f for f in frames if f.get("epoch") == 2 and f["running"])
        assert again["running"][0]["handle"] == row["handle"]
        assert time.time() - again["now"] < 5
        text = answer.read().decode()
    assert '"completion_tokens":800' in text
    assert "[DONE]" in text
