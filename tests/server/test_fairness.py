"""--fairness-by over HTTP: the only request of a client does not wait for all of another's."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from benchmarks.served import MODEL, SMALL, serve
from galley.cli.main import main
from tests.server import served as fake
from tests.small_model import small_model


def test_a_newcomer_is_served_before_a_crowd() -> None:
    model = (str(small_model()), "--served-model-name", MODEL)
    with serve(*model, *SMALL, "--max-num-seqs", "1", "--fairness-by", "header:X-Team") as server:
        assert asyncio.run(order_of_ends(server.url)).index("b") < 4


@pytest.mark.parametrize(
    ("by", "differ"),
    [
        ("none", {"Authorization": "b", "user": "b"}),
        ("api-key", {"Authorization": "b"}),
        ("api-key", {"X-Api-Key": "b"}),
        ("user", {"user": "b"}),
        ("header:X-Team", {"X-Team": "b"}),
        ("address", {}),
    ],
)
def test_clients_are_told_apart(by: str, differ: dict[str, str]) -> None:
    """A request that differs in this alone is another client's; the rest does not matter."""
    same = {"Authorization": "a", "X-Team": "a", "user": "a"}
    if "X-Api-Key" in differ:
        same = {"X-Api-Key": "a"}
    with fake.serve(fairness_by=by) as served:
        for fields in (same, {**same, **differ}, same, {**dict.fromkeys(same, "c"), **differ}, {}):
            body = {"prompt": "hi", "max_tokens": 1, "user": fields.get("user")}
            headers = {name: value for name, value in fields.items() if name != "user"}
            assert served.post("/v1/completions", body, headers=headers).status_code == 200
        first, other, again, alike, without = [request.client for request in served.engine.seen]
    assert first == again
    if by in ("none", "address"):
        assert first == other == alike == without
        assert bool(first) == (by == "address")
    else:
        assert len({first, other, without}) == 3
        assert alike == other
        assert without == ""


async def order_of_ends(url: str) -> list[str]:
    ended: list[str] = []

    async def ask(client: httpx.AsyncClient, name: str) -> None:
        body = {"model": MODEL, "prompt": f"{name}:", "max_tokens": 24, "ignore_eos": True}
        reply = await client.post("/v1/completions", json=body, headers={"X-Team": name})
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
