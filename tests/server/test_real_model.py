"""`galley serve` with the built-in model, from the socket to the kernels and back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.served import Served
from tests.server.test_disconnect import send, wait_for

ROOT = Path(__file__).parents[2]
MODEL = "SmolLM2-135M-Instruct"


class Real(Served):
    """As `Served`, for another process with another model."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    def total(self, pattern: str) -> float:
        text = self.get("/metrics").text
        return sum(float(v) for v in re.findall(rf"^{pattern}\S* (\S+)$", text, re.M))


@pytest.fixture(scope="module")
def real() -> Iterator[Real]:
    flags = ["--port", "0", "--host", "127.0.0.1", "--max-model-len", "2048"]
    child = subprocess.Popen(
        [sys.executable, "-m", "galley", "serve", *flags],
        cwd=ROOT,
        env={**os.environ, "VLLM_LOGGING_STREAM": "ext://sys.stderr"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        lines = []
        for line in child.stderr:
            lines.append(line)
            found = re.search(r"serving at http://127.0.0.1:(\d+)", line)
            if found:
                break
        else:
            pytest.fail("".join(lines))
        drain = ThreadPoolExecutor(1)
        rest = drain.submit(child.stderr.read)
        yield Real(int(found[1]), child.pid)
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
        assert "Traceback" not in rest.result(20)
        drain.shutdown()
    finally:
        child.kill()
        child.wait()


def chat(real: Real, text: str, **options: Any) -> Any:
    options = {"max_tokens": 24, "temperature": 0, **options}
    return real.client().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], **options
    )


def test_it_knows_a_capital_streamed_and_not(real: Real) -> None:
    whole = chat(real, "What is the capital of France?").choices[0].message.content
    assert "Paris" in whole
    chunks = chat(real, "What is the capital of France?", stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 11, "n": 2}])
def test_streamed_is_what_is_not_streamed(real: Real, options: dict[str, Any]) -> None:
    extra: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
    body = {"return_token_ids": True}
    whole = chat(real, "Tell me a story.", extra_body=body, **options, **extra)
    parts = list(chat(real, "Tell me a story.", stream=True, extra_body=body, **options, **extra))
    for choice in whole.choices:
        mine = [c.choices[0] for c in parts if c.choices and c.choices[0].index == choice.index]
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [i for c in mine for i in getattr(c, "token_ids", None) or ()] == choice.token_ids
        entries = [e for c in mine if c.logprobs for e in c.logprobs.content]
        assert entries == choice.logprobs.content


def test_company_changes_nothing(real: Real) -> None:
    def ask(i: int) -> str:
        text = f"Write one sentence about the number {i}."
        return str(chat(real, text, max_tokens=12).choices[0].message.content)

    alone = [ask(i) for i in range(4)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12)))[:4] == alone


def test_metrics_equal_the_answers(real: Real) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    before = [real.total(name) for name in names]
    gaps = real.total("vllm:inter_token_latency_seconds_count")
    success = real.total("vllm:request_success_total")
    usages = [chat(real, f"Count to {i}.", max_tokens=5 + i).usage for i in range(10)]
    told = (sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages))
    assert [real.total(name) for name in names] == [
        b + t for b, t in zip(before, told, strict=True)
    ]
    assert real.total("vllm:inter_token_latency_seconds_count") == gaps + told[1] - 10
    assert real.total("vllm:request_success_total") == success + 10
    assert real.total("vllm:num_requests_running") == 0
    assert real.total("vllm:num_requests_waiting{") == 0


def test_clients_that_give_up_free_the_engine(real: Real) -> None:
    """http_behaviours 8."""
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True}
    socks = [send(real, "/v1/completions", {**body, "stream": True}) for _ in range(16)]
    for sock in socks:
        assert sock.recv(20)
    assert real.total("vllm:num_requests_running") > 0
    for sock in socks:
        sock.close()
    wait_for(lambda: real.total("vllm:num_requests_running") == 0)
    wait_for(lambda: real.total("vllm:kv_cache_usage_perc") == 0)
    assert chat(real, "Hello", max_tokens=3).usage.completion_tokens <= 3


def test_too_long_for_the_model(real: Real) -> None:
    """http_behaviours 5: both numbers."""
    with pytest.raises(openai.BadRequestError, match="2048") as caught:
        chat(real, "word " * 2500)
    assert re.search(r"25\d\d tokens", caught.value.message)
