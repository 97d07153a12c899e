"""Sleep: memory is given back and taken again, and requests go on as if nothing had been
(checklist 174).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.launcher.serving import ENGINE, Server
from tests.server.test_disconnect import wait_for

MIB = 2**20
#: A prompt of some 900 tokens: 1.3 MiB of KV cache.
LONG = "The history of the world in many words. " * 100


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--enable-sleep-mode", env={"VLLM_SERVER_DEV_MODE": "1"})
    yield server
    server.close()


def post(server: Server, path: str) -> Any:
    answer = httpx.post(server.url + path, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def state(server: Server) -> str:
    """The one state that vllm:engine_sleep_state shows, "" at level 0."""
    found = ""
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith("vllm:engine_sleep_state") and line.endswith(" 1.0"):
            found += line.partition('sleep_state="')[2].partition('"')[0]
    return found


def pss(server: Server) -> int:
    """Bytes of memory that are the engine's own."""
    text = Path(f"/proc/{server.children[ENGINE]}/smaps_rollup").read_text()
    return next(int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:")) * 1024


def complete(server: Server, prompt: str = "Once upon a time", max_tokens: int = 20) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
    return client.completions.create(
        model="SmolLM2-135M-Instruct",
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0,
        logprobs=2,
        extra_body={"ignore_eos": True},
    ).choices[0]


@pytest.mark.parametrize(
    ("level", "least", "shown"), [(1, 3, "weights_offloaded"), (2, 15, "discard_all")]
)
def test_memory_is_given_back(server: Server, level: int, least: int, shown: str) -> None:
    texts = [f"{i} {LONG}" for i in range(3)]
    before = [complete(server, text) for text in texts]
    full = pss(server)
    assert post(server, f"/sleep?level={level}") == {"status": "sleeping", "level": level}
    assert full - pss(server) > least * MIB
    assert state(server) == shown
    assert httpx.get(f"{server.url}/is_sleeping").json() == {"is_sleeping": True}
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.post(f"{server.url}/resume").status_code == 400
    assert post(server, "/wake_up") == {"status": "awake", "tags": None}
    assert state(server) == "awake"
    assert httpx.get(f"{server.url}/is_sleeping").json() == {"is_sleeping": False}
    assert [complete(server, text) for text in texts] == before


@pytest.mark.parametrize("level", [1, 2])
def test_kept_requests_go_on(server: Server, level: int) -> None:
    """Running requests are recomputed, new ones wait."""
    whole = complete(server, max_tokens=400)
    found: list[Any] = []

    def ask() -> None:
        found.append(complete(server, max_tokens=400))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads[:2]:
        thread.start()
    wait_for(lambda: server.metric("vllm:num_requests_running") == 2)
    post(server, f"/sleep?level={level}&mode=keep")
    threads[2].start()
    threads[0].join(0.3)
    assert not found
    woken = {"status": "sleeping", "tags": ["weights"]}
    assert post(server, "/wake_up?tags=weights") == woken
    assert not found
    assert post(server, "/wake_up?tags=kv_cache&tags=scheduling")["status"] == "awake"
    for thread in threads:
        thread.join(60)
    assert found == [whole] * 3
    server.inspect()


def test_all_end_or_are_waited_for(server: Server) -> None:
    found: list[Any] = []

    def ask() -> None:
        found.append(complete(server, max_tokens=300))

    for mode, reason in (("abort", "abort"), ("wait", "length")):
        found.clear()
        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: server.metric("vllm:num_requests_running") == 1)
        post(server, f"/sleep?level=1&mode={mode}")
        thread.join(30)
        assert [choice.finish_reason for choice in found] == [reason]
        post(server, "/wake_up")


def test_level_0_is_a_pause(server: Server) -> None:
    post(server, "/sleep?level=0&mode=keep")
    assert state(server) == ""
    assert post(server, "/release_kv_cache_memory") == {"status": "kv_cache_released"}
    assert httpx.post(f"{server.url}/release_kv_cache_memory").status_code == 400
    assert post(server, "/wake_up?tags=scheduling")["status"] == "sleeping"
    assert post(server, "/wake_up?tags=kv_cache")["status"] == "awake"
    assert httpx.post(f"{server.url}/release_kv_cache_memory").status_code == 400
    assert complete(server).finish_reason == "length"


def test_what_is_asked_for_must_exist(server: Server) -> None:
    for path in ("/sleep?level=3", "/sleep?mode=later", "/wake_up?tags=brain"):
        assert httpx.post(server.url + path).status_code == 400
    assert complete(server).finish_reason == "length"


def test_operations_are_measured(server: Server) -> None:
    post(server, "/sleep")
    post(server, "/wake_up")
    name = "vllm:sleep_mode_operation_duration_seconds_count"
    before = server.metric(name)
    post(server, "/sleep")
    post(server, "/wake_up")
    assert server.metric(name) == before + 2
    assert server.metric("vllm:sleep_mode_operations_in_flight") == 0


def test_a_sleeping_engine_that_dies_comes_back_awake(server: Server) -> None:
    whole = complete(server)
    post(server, "/sleep?level=2")
    engine = server.children[ENGINE]
    server.kill_engine(9)
    wait_for(lambda: server.children.get(ENGINE, engine) != engine)
    assert complete(server) == whole
    assert state(server) == "awake"
