"""Progress and log lines of an engine that starts."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from galley.batch import GroupSpec
from galley.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig, SchedulerConfig
from galley.engine import startup
from galley.engine.startup import LoadProgress, log_start


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def load(tensors: int = 10) -> None:
    with LoadProgress() as progress:
        for i in range(tensors):
            progress((i + 1) * 10**9, tensors * 10**9)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("galley")
    before, logger.propagate = logger.propagate, True
    caplog.set_level("INFO", "galley")
    yield caplog
    logger.propagate = before


def test_a_long_load_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "PATIENCE", 0.0)
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    monkeypatch.setenv("TERM", "xterm")
    load()
    assert "Loading weights" in screen.getvalue()
    assert "1.0/10.0 GB" in screen.getvalue()
    assert "GB/s" in screen.getvalue()


def test_a_long_load_is_a_line_in_a_log(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(startup, "PATIENCE", 0.0)
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    load()
    [line] = [r.getMessage() for r in log.records]  # once in ten seconds
    assert re.fullmatch(
        r"Loading weights: 1\.0 of 10\.0 GB after 0 s, [\d.]+ GB/s, \d+ s left\.", line
    )
    assert written.getvalue() == ""


def test_a_short_load_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    load()
    assert (screen.getvalue(), log.records) == ("", [])


def test_the_log_summarises_the_start(log: pytest.LogCaptureFixture) -> None:
    config = EngineConfig(
        model=ModelConfig(served_model_name=("tiny",)),
        cache=CacheConfig(block_size=32),
        scheduler=SchedulerConfig(max_num_batched_tokens=2048, max_num_seqs=128),
        device=DeviceConfig(num_threads=2),
    )
    memory = {"weights": 5 << 20, "kv_cache": 3 << 30, "available": 8 << 30}
    memory |= {"activations": 1 << 20, "adapters": 0}
    executor: Any = SimpleNamespace(
        num_blocks=101,
        max_model_len=1600,
        groups=(GroupSpec("full", 32, 1024),),
        rpc=lambda method: [memory],
    )
    model_info: Any = SimpleNamespace(architecture="LlamaForCausalLM", dtype="bfloat16")
    log_start(config, model_info, executor, 1.23)
    assert [r.getMessage() for r in log.records] == [
        "Loaded tiny (LlamaForCausalLM, bfloat16) in 1.2 s: weights 5 MiB.",
        "KV cache: 3,200 tokens (100 blocks of 32), up to 3.00 GiB. Maximum concurrency for 1,600 "
        "tokens per request: 2.0x",
        "A step takes up to 2,048 tokens of 128 sequences, on 2 threads.",
    ]
