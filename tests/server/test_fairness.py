"""--fairness-by over HTTP: the only request of a client does not wait for all of another's."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from benchmarks.served import MODEL, SMALL, serve
from galley.cli.main import main
from tests.small_model import small_model


@pytest.mark.parametrize("by", ["api-key", "user", "header:X-Team"])
def test_a_newcomer_is_served_before_a_crowd(by: str) -> None:
    model = (str(small_model()), "--served-model-name", MODEL)
    with serve(*model, *SMALL, "--max-num-seqs", "1", "--fairness-by", by) as server:
        assert asyncio.run(order_of_ends(server.url)).index("b") < 4


async def order_of_ends(url: str) -> list[str]:
    ended: list[str] = []

    async def ask(client: httpx.AsyncClient, name: str) -> None:
        body = {"model": MODEL, "prompt": f"{name}:", "max_tokens": 24, "ignore_eos": True}
        headers = {"Authorization": f"Bearer {name}", "X-Team": name}
        reply = await client.post("/v1/completions", json={**body, "user": name}, headers=headers)
        assert reply.status_code == 200, reply.text
        ended.append(name)

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        crowd = [asyncio.create_task(ask(client, "a")) for _ in range(8)]
        while "num_requests_waiting" not in (metrics := (await client.get("/metrics")).text) or (
            waiting(metrics) < 6
        ):
            await asyncio.sleep(0.01)
        await asyncio.gather(ask(client, "b"), *crowd)
    return ended


def waiting(metrics: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_waiting{")]
    return float(lines[0].split()[-1]) if lines else 0


@pytest.mark.parametrize("value", ["header", "header:", "ip", "user:x"])
def test_what_it_may_be(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--fairness-by", value]) == 2
    assert "--fairness-by must be none, api-key, user, address or header:NAME" in (
        capsys.readouterr().err
    )
