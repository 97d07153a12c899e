"""Engine metrics from events: names, exactness, restarts."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from galley.messages import Counters, Outputs, Ready, Started, Stats
from galley.observability.http_metrics import HttpMetrics
from galley.observability.metrics import EngineMetrics
from galley.observability.registry import exposition, new_registry
from galley.request import FinishReason, Request, SamplingParams

LABELS = {"model_name": "m", "engine": "0"}
#: What vLLM 0.32 exposes whatever its flags.
VLLM: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vllm_metrics.json").read_text())


class Bench:
    """Metrics and the engine that reports to them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = EngineMetrics(
            self.registry,
            "m",
            max_model_len=131_072,
            cache_info={"block_size": 16, "enable_prefix_caching": True},
        )

    def __getitem__(self, sample: str) -> float:
        name, _, label = sample.partition("/")
        labels = dict([label.split("=")]) if label else {}
        name = name if ":" in name else f"vllm:{name}"
        value = self.registry.get_sample_value(name, {**LABELS, **labels})
        assert value is not None, sample
        return value

    def add(self, handle: int, *, prompt: int = 10, n: int = 1, max_tokens: int | None = 9) -> None:
        for i in range(n):
            request = Request(
                handle=handle + i,
                request_id=str(handle),
                prompt_token_ids=array("i", [5] * prompt).tobytes(),
                params=SamplingParams(max_tokens=max_tokens),
                max_total_tokens=100,
                arrival_time=1000.0,
                share_group=handle if n > 1 else 0,
            )
            self.metrics.added(request, i, n)

    def step(
        self,
        handles: Iterable[int] = (),
        *,
        at: float = 1001.0,
        counts: Iterable[int] = (),
        started: Iterable[Started] = (),
        stats: Stats | None = None,
        epoch: int = 1,
    ) -> None:
        self.metrics.outputs(
            Outputs(
                step=1,
                epoch=epoch,
                engine_index=0,
                timestamp=at,
                handles=array("q", handles).tobytes(),
                counts=array("i", counts).tobytes(),
                started=list(started),
                stats=stats,
            )
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_names_types_labels_and_buckets_are_vllms() -> None:
    """Checklist 186: every family is there before traffic, zero."""
    registry = new_registry()
    cache = next(m for m in VLLM if m["name"] == "vllm:cache_config_info")
    ours = {"num_gpu_blocks", "kv_cache_size_tokens", "kv_cache_max_concurrency", "engine"}
    EngineMetrics(
        registry,
        "m",
        max_model_len=131_072,
        cache_info={label: 1 for label in cache["labels"] if label not in ours},
    )
    HttpMetrics(registry)
    families = {family.name: family for family in registry.collect()}
    for metric in VLLM:
        name = metric["name"]
        if metric["type"] == "counter":
            name = name.removesuffix("_total")
        family = families[name]
        assert family.type == metric["type"], name
        if not name.startswith("vllm:"):
            continue
        samples = [s for s in family.samples if not s.name.endswith("_created")]
        assert samples, name
        wanted = set(metric["labels"]) | ({"le"} if "buckets" in metric else set())
        assert {label for s in samples for label in s.labels} == wanted, name
        if "buckets" in metric:
            found = [float(s.labels["le"]) for s in samples if s.name.endswith("_bucket")]
            assert found == [*map(float, metric["buckets"]), float("inf")], name
        for label, values in metric.get("label_values", {}).items():
            assert {s.labels[label] for s in samples} == set(values), name
        if name not in ("vllm:cache_config_info", "vllm:engine_sleep_state"):
            assert all(s.value == 0 for s in samples), name


def test_process_metrics_are_exposed() -> None:
    body, _ = exposition(new_registry())
    for name in (b"process_resident_memory_bytes", b"python_info", b"python_gc_objects"):
        assert name in body


def test_a_clock_that_is_set_back_takes_nothing_from_a_sum(bench: Bench) -> None:
    bench.add(7)
    bench.step(started=[Started(7, 0, 1000.5, 900.0)])
    for at in (905.0, 800.0, 801.0):
        bench.step([7], at=at)
    bench.metrics.finished(7, FinishReason.LENGTH, 3)
    sums = [s for f in bench.registry.collect() for s in f.samples if s.name.endswith("_sum")]
    assert all(s.value >= 0 for s in sums)
    assert bench["inter_token_latency_seconds_sum"] == 1.0
    assert bench["inter_token_latency_seconds_count"] == 2
    assert bench["request_queue_time_seconds_sum"] == 0.0


def test_a_request_from_arrival_to_end(bench: Bench) -> None:
    bench.add(7, prompt=40)
    bench.step(started=[Started(7, 16, 1000.5, 1002.0)])
    for i in range(4):
        bench.step([7], at=1003.0 + i)
    bench.metrics.finished(7, FinishReason.LENGTH, 4)
    assert bench["generation_tokens_total"] == 4
    assert bench["prompt_tokens_total"] == 40
    assert bench["prompt_tokens_by_source_total/source=local_cache_hit"] == 16
    assert bench["prompt_tokens_by_source_total/source=local_compute"] == 24
    assert bench["prompt_tokens_cached_by_source_total/source=device"] == 16
    assert bench["request_queue_time_seconds_sum"] == 1.5
    assert bench["request_prefill_time_seconds_sum"] == 1.0
    assert bench["request_decode_time_seconds_sum"] == 3.0
    assert bench["request_inference_time_seconds_sum"] == 4.0
    assert bench["inter_token_latency_seconds_count"] == 3
    assert bench["inter_token_latency_seconds_sum"] == 3.0
    assert bench["request_time_per_output_token_seconds_sum"] == 1.0
    assert bench["request_success_total/finished_reason=length"] == 1
    assert bench["request_params_max_tokens_sum"] == 9
    assert bench["request_prefill_kv_computed_tokens_sum"] == 24


def test_gaps_fall_into_the_same_buckets_as_single_observations(bench: Bench) -> None:
    for handle in (1, 2, 3, 4):
        bench.add(handle)
    bench.step([1, 2, 3], at=1001.0)
    bench.step([1, 2], at=1001.03)
    bench.step([1, 2, 3, 4], at=1001.09)
    bench.step([1, 2, 3, 4], at=1001.09 + 100)
    gaps = [0.03] * 2 + [0.06] * 2 + [0.09] + [100.0] * 4
    assert bench["inter_token_latency_seconds_count"] == len(gaps)
    assert bench["inter_token_latency_seconds_sum"] == pytest.approx(sum(gaps))
    for bound in ("0.01", "0.025", "0.05", "0.075", "0.1", "80.0"):
        found = bench[f"inter_token_latency_seconds_bucket/le={bound}"]
        assert found == sum(gap <= float(bound) + 1e-6 for gap in gaps), bound
    assert bench["inter_token_latency_seconds_bucket/le=+Inf"] == len(gaps)


def test_several_tokens_in_a_step_are_as_many_gaps(bench: Bench) -> None:
    bench.add(1)
    bench.step([1], at=1001.0, counts=[2])
    bench.step([1], at=1004.0, counts=[3])
    assert bench["generation_tokens_total"] == 5
    assert bench["inter_token_latency_seconds_count"] == 4
    assert bench["inter_token_latency_seconds_sum"] == pytest.approx(3.0)
    assert bench["time_to_first_token_seconds_count"] == 1


def test_n_sequences_share_one_prompt(bench: Bench) -> None:
    bench.add(1, prompt=20, n=3)
    bench.step([1, 2, 3])
    for handle, tokens in ((1, 1), (2, 5), (3, 2)):
        bench.metrics.finished(handle, FinishReason.STOP, tokens)
    assert bench["prompt_tokens_total"] == 20
    assert bench["request_params_n_sum"] == 3
    assert bench["request_params_n_count"] == 1
    assert bench["request_max_num_generation_tokens_count"] == 1
    assert bench["request_max_num_generation_tokens_sum"] == 5
    assert bench["request_success_total/finished_reason=stop"] == 3


def test_nothing_is_kept_of_finished_requests(bench: Bench) -> None:
    bench.add(1, n=2)
    bench.add(5)
    bench.step([1, 2, 5])
    for handle in (1, 2, 5):
        bench.metrics.finished(handle, FinishReason.ABORT, 1)
        bench.metrics.finished(handle, FinishReason.ABORT, 1)
    bench.step([1, 2, 5], at=1002.0)
    assert bench["generation_tokens_total"] == 3
    assert bench["request_success_total/finished_reason=abort"] == 3
    assert not bench.metrics._timelines
    assert not bench.metrics._groups


def test_a_request_that_never_ran_has_no_phases(bench: Bench) -> None:
    bench.add(1)
    bench.metrics.finished(1, FinishReason.ABORT, 0)
    assert bench["e2e_request_latency_seconds_count"] == 1
    assert bench["request_queue_time_seconds_count"] == 0
    assert bench["request_decode_time_seconds_count"] == 0


def test_preemption_and_resumption(bench: Bench) -> None:
    bench.add(1)
    bench.step([1], started=[Started(1, 0, 1000.0, 1000.5)])
    bench.step([1], at=1002.0, started=[Started(1, 8, 1001.0, 1001.5, resumed=True)])
    bench.metrics.finished(1, FinishReason.STOP, 2)
    assert bench["request_num_preemptions_sum"] == 1
    assert bench["request_queue_time_seconds_sum"] == 0.5
    assert bench["prompt_tokens_cached_total"] == 0


def test_the_engines_counters_survive_its_death(bench: Bench) -> None:
    def stats(**counters: int) -> Stats:
        state = {"num_running": 1, "num_waiting": 3, "waiting_by_reason": {"capacity": 2}}
        return Stats(**state, counters=Counters(**counters))

    bench.step(stats=stats(num_preemptions=2, prefix_queries=100, prefix_hits=32, num_steps=1))
    bench.step(stats=stats(num_preemptions=1, prefix_queries=50, num_steps=1))
    fresh = stats(num_preemptions=1, prefix_queries=10, prefix_hits=5, num_steps=1)
    bench.step(stats=fresh, epoch=2)
    assert bench["num_preemptions_total"] == 4
    assert bench["prefix_cache_queries_total"] == 160
    assert bench["prefix_cache_hits_total"] == 37
    assert bench["num_requests_waiting_by_reason/reason=capacity"] == 2
    assert bench["num_requests_waiting_by_reason/reason=deferred"] == 1
    assert bench["num_requests_waiting"] == 3


def test_a_step_is_observed_once(bench: Bench) -> None:
    for counters, tokens in (
        (Counters(num_steps=1), 100),
        (None, 100),
        (Counters(num_steps=1), 3),
        (Counters(), 3),
    ):
        bench.step(stats=Stats(counters=counters, step_tokens=tokens))
    assert bench["galley:step_tokens_count"] == 2
    assert bench["galley:step_tokens_sum"] == 103


def test_iteration_tokens_are_prompts_and_outputs(bench: Bench) -> None:
    bench.add(1, prompt=10)
    bench.add(2, prompt=20)
    bench.step([1, 2])
    bench.step([1])
    assert bench["iteration_tokens_total_count"] == 2
    assert bench["iteration_tokens_total_sum"] == 10 + 20 + 3


def test_cache_info_becomes_whole_when_the_engine_is_ready(bench: Bench) -> None:
    def series() -> list[dict[str, str]]:
        [family] = [f for f in bench.registry.collect() if f.name == "vllm:cache_config_info"]
        return [s.labels for s in family.samples]

    [before] = series()
    assert (before["block_size"], before["num_gpu_blocks"]) == ("16", "None")
    for _ in range(2):
        bench.metrics.ready(Ready(0, 1, 1024, 256, 16, True, cache_tokens=4096))
    [after] = series()
    assert (after["block_size"], after["num_gpu_blocks"]) == ("16", "256")
    assert after["kv_cache_size_tokens"] == "4096"
    assert after["kv_cache_max_concurrency"] == "4.0"


def test_buckets_follow_the_model_s_length_and_the_user() -> None:
    registry = CollectorRegistry()
    custom: dict[str, list[float]] = {"inter_token_latency": [0.002, 0.5, 3]}
    EngineMetrics(registry, "m", max_model_len=300, buckets=custom)
    families = {family.name: family for family in registry.collect()}

    def edges(name: str) -> list[float]:
        samples = families[name].samples
        return [float(s.labels["le"]) for s in samples if "le" in s.labels][:-1]

    assert edges("vllm:request_prompt_tokens") == [1, 2, 5, 10, 20, 50, 100, 200]
    assert edges("vllm:inter_token_latency_seconds") == [0.002, 0.5, 3]
    assert edges("vllm:request_time_per_output_token_seconds") == [0.002, 0.5, 3]
    assert edges("vllm:request_params_n") == [1, 2, 5, 10, 20]
