"""Faults × moments × workloads on a real server: every answer is that of a server without faults.

One server goes through a chain of faults, one in each life of its engine, while the workload is
run round after round. Every round must be what it is undisturbed; after each, the accounting of the
engine is right and all its blocks are free; at the end nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.workload import REQUESTS
from tests.launcher.serving import Server, play
from tests.launcher.test_supervisor import until

#: Small steps, so that a prompt takes many; restarts as often as a chain needs them.
FLAGS = ["--max-num-batched-tokens", "64", "--max-engine-restarts", "99"]


@pytest.fixture(scope="module")
def undisturbed() -> list[object]:
    server = Server(*FLAGS)
    answers = [a.seen for a in play(server, REQUESTS)]
    server.inspect()
    server.close()
    return answers


@pytest.fixture
def server(faults: list[str]) -> Iterator[Server]:
    env = {"GALLEY_FAULTS": ",".join(faults), "GALLEY_DEV_MODE": "1"}
    hangs = any("hang" in fault for fault in faults)
    server = Server(*FLAGS, *(["--engine-step-timeout", "2"] if hangs else []), env=env)
    yield server
    server.process.kill()
    server.process.wait()


def chain(*faults: str) -> list[str]:
    """Each fault in a life of its own, from the first on."""
    return [f"{epoch}:{fault}" for epoch, fault in enumerate(faults, 1)]


#: After a crash the requests of its step are sent again one by one; a second crash meanwhile would
#: be blamed on one of them. Chains of crashes are spaced so that all are cleared by then.
CHAINS = {
    "killed": chain(
        *("step70=kill", "after3=kill", "step90=kill"),
        *("step5=kill", "after7=kill", "step20=kill"),
        *("step9=kill", "step1=kill", "step1=kill", "step2=kill"),
        *("step9=kill", "start=kill", "loaded=kill", "start=memory"),
    ),
    "crashed": chain("step4=memory", "step120=raise", "after120=abort", "step120=segv"),
    "out of memory": chain("step70=starve"),
    "hanging": chain("step40=hang"),
    "slow": ["*:step3+=sleep/0.01"],
    "connections": [
        *("1:out1=close", "1:out9=close", "1:out30=close", "1:step70=kill"),
        *("2:out1=close", "2:out4=close"),
    ],
}


@pytest.mark.parametrize("faults", list(CHAINS.values()), ids=list(CHAINS))
def test_every_answer_is_that_without_faults(
    server: Server, faults: list[str], undisturbed: list[object]
) -> None:
    rounds = 0
    while not all(server.count(f"injected fault: {fault}\n") for fault in faults):
        assert [a.seen for a in play(server, REQUESTS)] == undisturbed
        server.inspect()
        rounds += 1
        assert rounds < 9, "the faults do not happen"
    assert server.metric("galley:engine_restarts_total") == server.count("restarting it")
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    num_sequences = sum(int(r.get("n", 1)) for r in REQUESTS)
    assert server.metric("vllm:request_success_total") == rounds * num_sequences
    assert server.metric("vllm:generation_tokens_total") == rounds * sum(
        a[-1][1] for a in undisturbed
    )
    server.close()


def test_an_eight_bit_cache_outlives_its_engine() -> None:
    flags = [
        "--kv-cache-dtype",
        "fp8",
        "--calculate-kv-scales",
        "--kv-cache-dtype-skip-layers",
        "0",
    ]
    faults = [*chain("step70=kill", "after3=kill")]
    env = {"GALLEY_FAULTS": ",".join(faults), "GALLEY_DEV_MODE": "1"}
    server = Server(*FLAGS, *flags, env=env)
    try:
        disturbed = [a.seen for a in play(server, REQUESTS)]
        assert all(server.count(f"injected fault: {fault}\n") for fault in faults)
        assert [a.seen for a in play(server, REQUESTS)] == disturbed
        server.inspect()
        server.close()
    finally:
        server.process.kill()
        server.process.wait()
