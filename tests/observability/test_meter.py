"""Estimates of a step's work, and the lives of cached blocks (checklist 201, 202, 216)."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from galley import LLM, SamplingParams
from galley.batch import EMPTY_I32, GroupSpec, RequestTable
from galley.kv import (
    BlockHasher,
    BlockPool,
    Hit,
    KVCacheManager,
    KVListener,
    StoredBlock,
)
from galley.messages import Counters, Outputs, Stats
from galley.observability.meter import BlockLifetimes, Sizes, Workload
from galley.observability.metrics import EngineMetrics
from tests.small_model import LAYERS, small_model

SIZES = Sizes(
    linear_weights=1000, vocab_weights=500, attention_width=8, weight_bytes=3000, kv_bytes=64
)


def test_work_is_that_of_each_token_counted_by_hand() -> None:
    counters = Counters()
    work = Workload(SIZES, counters)
    rows = [(3, 0), (1, 10), (5, 16)]
    new, before = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    work.add(new, before, logits=2)
    flops = read = written = 0
    for n, computed in rows:
        for j in range(n):
            flops += 2 * SIZES.linear_weights
            # A query against each key, and each value's share: two products a place.
            flops += (computed + j + 1) * SIZES.attention_width * 4
        read += (computed + n) * SIZES.kv_bytes
        written += n * SIZES.kv_bytes
    assert counters.flops == flops + 2 * 2 * SIZES.vocab_weights
    assert counters.read_bytes == read + SIZES.weight_bytes
    assert counters.write_bytes == written
    work.add(new, before, logits=2)
    assert counters.write_bytes == 2 * written


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(i: int) -> bytes:
    return i.to_bytes(4, "little") * 8


def stored(block: int, key: bytes) -> StoredBlock:
    return StoredBlock(block, 0, key, 0, None, EMPTY_I32, None)


def watched(listener: KVListener) -> KVCacheManager:
    """A KV cache of two blocks; slot 0 has the tokens 0 .. 31."""
    table = RequestTable(1, 32, [GroupSpec("full", 16, 4)])
    table.token_ids[0] = np.arange(32)
    hasher = BlockHasher("sha256", 16, "0")
    kv = KVCacheManager(table, BlockPool(3), hasher, enable_prefix_caching=True, max_chunk=32)
    kv.listeners.append(listener)
    return kv


def seconds(column: bytes) -> list[float]:
    return array("f", column).tolist()


def test_the_lifetime_of_a_block() -> None:
    clock = Clock()
    lives = BlockLifetimes(1.0, clock)
    kv = watched(lives)
    pool, chain = kv.pool, kv.new_chain(None, None)
    kv.admit(0, chain, Hit())
    kv.grow(np.array([0]), np.array([[1]]))
    kv.cache_blocks([0], [16])
    kv.free(0, 16)
    for seconds_later in (2, 3):
        clock.now += seconds_later
        hit = kv.find_hit(chain, np.arange(17, dtype=np.int32))
        assert hit.num_tokens == 16
        kv.admit(0, chain, hit)
        kv.free(0, 16)
    assert lives.take() == [b"", b"", array("f", [2.0, 3.0]).tobytes()]
    clock.now += 7
    pool.allocate(2)
    lifetimes, idle, gaps = lives.take()
    assert (seconds(lifetimes), seconds(idle), seconds(gaps)) == ([12.0], [7.0], [])
    assert lives.take() == []


def test_a_cleared_cache_leaves_nothing_behind() -> None:
    lives = BlockLifetimes(1.0)
    kv = watched(lives)
    kv.admit(0, kv.new_chain(None, None), Hit())
    kv.grow(np.array([0]), np.array([[2]]))
    kv.cache_blocks([0], [32])
    kv.free(0, 32)
    assert kv.reset_prefix_cache()
    kv.pool.allocate(2)
    assert lives.take() == []


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_sample_is_about_its_share(share: float) -> None:
    lives = BlockLifetimes(share)
    rng = np.random.default_rng(5)
    for i in range(20_000):
        lives.stored(stored(i, rng.bytes(32)))
        lives.removed(i, b"")
    [lifetimes, _, _] = lives.take()
    assert len(lifetimes) / 4 == pytest.approx(20_000 * share, rel=0.2)


def test_lifetimes_are_sent_and_observed_once() -> None:
    lifetimes = BlockLifetimes(1.0)
    lifetimes.stored(stored(1, key(1)))
    lifetimes.removed(1, key(1))
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry, "m", max_model_len=64, block_metrics=True)
    for _ in range(3):
        stats = Stats(block_times=lifetimes.take())
        metrics.outputs(Outputs(1, 1, 0, 0.0, stats=stats))
    labels = {"model_name": "m", "engine": "0"}

    def value(name: str) -> Any:
        return registry.get_sample_value(f"vllm:{name}", labels)

    assert value("kv_block_lifetime_seconds_count") == 1
    assert value("kv_block_reuse_gap_seconds_count") == 0


def test_measured_on_a_real_model() -> None:
    flags: dict[str, Any] = {
        "enable_mfu_metrics": True,
        "kv_cache_metrics": True,
        "kv_cache_metrics_sample": 1.0,
    }
    flags |= {"max_model_len": 256, "max_num_seqs": 4, "num_gpu_blocks_override": 17}
    with LLM(str(small_model()), **flags) as llm:
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        prompts = [f"{i}: " + "once upon a time " * 8 for i in range(6)]
        for prompt in (*prompts, prompts[-1]):
            llm.generate(prompt, params, use_tqdm=False)
        told = {m.name: m for m in llm.get_metrics()}
    computed = told["galley:step_tokens"].sum
    # Operations are about two a weight and token: 49152 × 576 weights in the head, 3.54 million in
    # each layer.
    per_token = told["vllm:estimated_flops_per_gpu"].value / computed
    weights = 49152 * 576 + LAYERS * 3.54e6
    assert 0.7 * 2 * weights < per_token < 1.3 * 2 * weights
    assert told["vllm:estimated_read_bytes_per_gpu"].value > 0.45 * weights * 60
    assert told["vllm:estimated_write_bytes_per_gpu"].value > 0
    for name in ("lifetime", "idle_before_evict"):
        assert told[f"vllm:kv_block_{name}_seconds"].count > 10
    assert told["vllm:kv_block_reuse_gap_seconds"].count > 0


def test_without_the_flags_metrics_are_absent_or_zero() -> None:
    registry = CollectorRegistry()
    EngineMetrics(registry, "m", max_model_len=64)
    names = {family.name for family in registry.collect()}
    assert not any("kv_block" in name for name in names)
    labels = {"model_name": "m", "engine": "0"}
    assert registry.get_sample_value("vllm:estimated_flops_per_gpu_total", labels) == 0
