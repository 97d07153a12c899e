"""--api-server-count 2: one port, one engine, common metrics; one server's death is its own
(checklist 134, 135).
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.launcher.serving import Server
from tests.server.test_disconnect import wait_for

SERVERS = ("Galley::APIServer_0", "Galley::APIServer_1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metrics")


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[Server]:
    (folder / "counter_999999999.db").write_bytes(b"left by a process that is gone")
    server = Server(
        "--api-server-count",
        "2",
        env={"PROMETHEUS_MULTIPROC_DIR": str(folder), "VLLM_SERVER_DEV_MODE": "1"},
    )
    yield server
    server.close()
    assert not list(folder.iterdir())


def metric(server: Server, sample: str) -> float:
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith(sample):
            return float(line.rpartition(" ")[2])
    raise KeyError(sample)


def sum_of(server: Server, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(name + "{"))


def connections(server: Server, pid: int) -> int:
    """Clients' connections that a process has accepted."""
    port = f":{int(server.url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = {row[9] for row in rows if row[1].endswith(port) and row[3] == "01"}
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(f"socket:[{inode}]" in links for inode in established)


def complete(server: Server, **body: Any) -> dict[str, Any]:
    body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, **body}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200
    return answer.json()


def test_counters_are_those_of_all(two: Server, folder: Path) -> None:
    """Checklist 204, 215."""
    before = {
        name: metric(two, f"vllm:{name}")
        for name in ("prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total")
    }
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda i=i: answers.append(complete(two, prompt=f"Tale {i}:")))
        for i in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 24
    prompts = sum(a["usage"]["prompt_tokens"] for a in answers)
    tokens = sum(a["usage"]["completion_tokens"] for a in answers)
    wait_for(lambda: metric(two, "vllm:num_requests_running") == 0)
    assert metric(two, "vllm:prompt_tokens_total") - before["prompt_tokens_total"] == prompts
    assert metric(two, "vllm:generation_tokens_total") - before["generation_tokens_total"] == tokens
    queries = metric(two, "vllm:prefix_cache_queries_total")
    assert queries - before["prefix_cache_queries_total"] == prompts
    # Each step is counted once over all servers.
    names = ("prompt_tokens", "prefix_cache_hits", "generation_tokens", "request_success")
    prompt_tokens, hits, generated, ended = (sum_of(two, f"vllm:{name}_total") for name in names)
    # The last token of each is not computed with.
    assert metric(two, "galley:step_tokens_sum") == prompt_tokens - hits + generated - ended
    assert metric(two, "vllm:iteration_tokens_total_sum") == prompt_tokens + generated
    pids = {two.children[name] for name in SERVERS}
    assert {int(p.stem.rpartition("_")[2]) for p in folder.iterdir()} == pids


def first_view(server: Server) -> dict[str, Any]:
    """The live view of the server that the connection came to."""
    with httpx.stream("GET", f"{server.url}/ui/api/live", timeout=30) as stream:
        line = next(line for line in stream.iter_lines() if line)
        [view] = json.loads(line.removeprefix("data: "))["engines"]
        return dict(view)


def test_the_pages_are_the_same_whichever_server_answers(two: Server) -> None:
    """/ui shows the requests of all servers, and one configuration."""
    body = {"max_tokens": 900, "ignore_eos": True}
    threads = [threading.Thread(target=complete, args=(two,), kwargs=body) for _ in range(12)]
    for thread in threads:
        thread.start()
    wait_for(lambda: metric(two, "vllm:num_requests_running") == 12)
    views = [first_view(two) for _ in range(6)]
    settings = [httpx.get(f"{two.url}/ui/api/operation").json()["settings"] for _ in range(6)]
    assert httpx.post(f"{two.url}/abort_requests", json={}, timeout=30).status_code == 200
    for thread in threads:
        thread.join(30)
    for view in views:
        handles = {one["handle"] for one in view["running"]}
        assert len(handles) == 12
        assert handles == {one["handle"] for one in views[0]["running"]}
        assert len(view["columns"]["step"]) == len(view["rows"]["counts"]) > 0
    assert all(found == settings[0] for found in settings)


@pytest.mark.parametrize("path", ["/pause", "/abort_requests", "/sleep?level=2"])
def test_requests_of_all_are_aborted(two: Server, path: str) -> None:
    """A call to one server aborts the requests of both."""
    found: list[Any] = []
    body = {"max_tokens": 900, "ignore_eos": True}
    threads = [
        threading.Thread(target=lambda: found.append(complete(two, **body)["choices"][0]))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: metric(two, "vllm:num_requests_running") == 12)
    assert httpx.post(two.url + path, json={}, timeout=30).status_code == 200
    for thread in threads:
        thread.join(30)
    assert {choice["finish_reason"] for choice in found} == {"abort"}
    assert len(found) == 12
    if path != "/abort_requests":
        assert httpx.post(f"{two.url}/wake_up", timeout=30).json()["status"] == "awake"
    complete(two)


def test_the_death_of_one_is_not_that_of_the_others_requests(two: Server) -> None:
    expected = complete(two, max_tokens=400, ignore_eos=True)["choices"][0]["text"]
    success = sum_of(two, "vllm:request_success_total")
    texts: list[str] = []
    broken: list[httpx.TransportError] = []
    begun = threading.Semaphore(0)

    def follow() -> None:
        text = ""
        try:
            for event in two.stream(
                {
                    "prompt": "Once upon a time",
                    "max_tokens": 400,
                    "temperature": 0,
                    "ignore_eos": True,
                }
            ):
                if not text:
                    begun.release()
                text += "".join(c["text"] for c in event["choices"])
            texts.append(text)
        except httpx.TransportError as error:
            broken.append(error)

    threads = [threading.Thread(target=follow) for _ in range(12)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=60)
    dead = two.children[SERVERS[0]]
    mine = connections(two, dead)
    os.kill(dead, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    assert len(broken) == mine
    assert texts == [expected] * (12 - mine)
    # New ones are answered at once by the one that is left, then by both.
    assert complete(two)["choices"][0]["text"]
    wait_for(lambda: two.children.get(SERVERS[0], dead) != dead)
    wait_for(lambda: metric(two, "vllm:num_requests_running") == 0)
    ended = len(texts) + 1
    wait_for(lambda: sum_of(two, "vllm:request_success_total") == success + ended)
    assert complete(two)["choices"][0]["text"]


def test_a_store_of_responses_needs_one_server() -> None:
    with pytest.raises(AssertionError, match="--api-server-count 1"):
        Server("--api-server-count", "2", env={"VLLM_ENABLE_RESPONSES_API_STORE": "1"})
