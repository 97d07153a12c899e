"""Prometheus metrics of the engines that one frontend is connected to.

`EngineMetrics` is a `RequestObserver`: it counts every token and every request, at the cost of one
look-up and a subtraction per token. The metrics are listed in `catalog`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from galley.config import EngineConfig
from galley.messages import DraftStats, Outputs, Ready, Started, Stats
from galley.observability.catalog import (
    BLOCK_METRICS,
    CACHE_TIERS,
    ENGINE_COUNTERS,
    METRICS,
    SLEEP_STATES,
    Metric,
    bounds,
    draft_metrics,
)
from galley.observability.registry import shares_metrics
from galley.request import FinishReason, Request, SamplingParams


@dataclass(slots=True)
class RequestTimeline:
    """Times and counts of an unfinished sequence. Times are `time.time`, 0.0 = not yet."""

    request: Request
    index: int
    n: int
    num_prompt: int
    engine: int = 0
    num_cached: int = 0
    queued: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    num_preemptions: int = 0


@dataclass(slots=True)
class SiblingGroup:
    """The n sequences of one request."""

    num_unfinished: int
    longest: int = 0


class Series:
    """The labelled metrics of one engine, by name; `name[value]` where there is a third label."""

    def __init__(self, families: dict[str, tuple[Metric, Any]], labels: dict[str, str]) -> None:
        self._metrics: dict[str, Any] = {}
        for name, (metric, family) in families.items():
            if metric.label is None:
                self._metrics[name] = family.labels(**labels)
            for value in metric.values:
                child = family.labels(**labels, **{str(metric.label): value})
                self._metrics[f"{name}[{value}]"] = child

    def inc(self, name: str, amount: float = 1) -> None:
        if amount:
            self._metrics[name].inc(amount)

    def set(self, name: str, value: float) -> None:
        self._metrics[name].set(value)

    def observe(self, name: str, value: float) -> None:
        """One observation; a time that a clock set back has made negative counts as none."""
        self.observe_times(name, value, 1)

    def observe_times(self, name: str, value: float, times: int) -> None:
        """`times` observations of one value, at the cost of one."""
        histogram, value = self._metrics[name], max(value, 0.0)
        histogram._sum.inc(value * times)
        histogram._buckets[bisect_left(histogram._upper_bounds, value)].inc(times)


_counter_values = attrgetter(*ENGINE_COUNTERS)


class EngineMetrics:
    """Counts what an engine client reports.

    Args:
        registry: where the metrics are registered, all zero.
        max_model_len: upper end of buckets of tokens.
        num_engines: engines whose series exist from the start.
        block_metrics: expose lifetimes of KV blocks (--kv-cache-metrics).
        cache_info: the KV cache's configuration, for `vllm:cache_config_info`.
        buckets: family → bounds that replace vLLM's (--custom-histogram-buckets).
        most_drafts: of a sequence and step; 0 = no speculation, and no metrics of it.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        model_name: str,
        *,
        max_model_len: int,
        num_engines: int = 1,
        block_metrics: bool = False,
        cache_info: dict[str, object] | None = None,
        buckets: Mapping[str, list[float]] | None = None,
        most_drafts: int = 0,
    ) -> None:
        families: dict[str, tuple[Metric, Any]] = {}
        optional = (*(BLOCK_METRICS if block_metrics else ()), *draft_metrics(most_drafts))
        for metric in (*METRICS, *optional):
            edges: tuple[float, ...] = ()
            if metric.buckets is not None:
                edges = bounds(metric.buckets, max_model_len, buckets or {})
            families[metric.name] = metric, _make(metric, edges, registry)
        self.series = [
            Series(families, {"model_name": model_name, "engine": str(i)})
            for i in range(num_engines)
        ]
        self._counts_drafts = most_drafts > 0
        self.sleeps(None)
        self._cache_info = _CacheInfo(registry, dict(cache_info or {}), num_engines)
        self._timelines: dict[int, RequestTimeline] = {}
        self._groups: dict[int, SiblingGroup] = {}
        #: engine → its gauges as last set: running, waiting and deferred requests, KV cache usage
        self._gauges: list[tuple[float, ...]] = [() for _ in range(num_engines)]
        self._rejections = _admission_rejections(registry, model_name)
        self._model_name = model_name
        self._shared = shares_metrics()

    @classmethod
    def of(
        cls, registry: CollectorRegistry, config: EngineConfig, max_model_len: int
    ) -> EngineMetrics:
        """The metrics for a configuration, under the model's first name."""
        speculative = config.speculative.settings
        return cls(
            registry,
            config.model.served_model_name[0],
            max_model_len=max_model_len,
            num_engines=config.parallel.data_parallel_size,
            block_metrics=config.observability.kv_cache_metrics,
            cache_info=asdict(config.cache),
            buckets=config.observability.custom_histogram_buckets,
            most_drafts=0 if speculative is None else speculative.most_drafts,
        )

    def rejected(self, reason: str) -> None:
        """A request was rejected by the limit `reason`."""
        self._rejections.labels(model_name=self._model_name, reason=reason).inc()

    def sleeps(self, level: int | None) -> None:
        """The engines have been put to sleep at a level, or woken up (None)."""
        now = "awake" if level is None else ("", "weights_offloaded", "discard_all")[level]
        for series in self.series:
            for state in SLEEP_STATES:
                series.set(f"engine_sleep_state[{state}]", float(state == now))

    # ------------------------------------------------------------------ RequestObserver

    def ready(self, message: Ready) -> None:
        self.sleeps(message.sleep_level)
        self._cache_info.set_size(message)

    def added(self, request: Request, index: int, n: int) -> None:
        num_prompt = len(request.prompt_token_ids) // 4
        self._timelines[request.handle] = RequestTimeline(request, index, n, num_prompt)
        if n > 1 and index == 0:
            self._groups[request.share_group] = SiblingGroup(n)

    def outputs(self, message: Outputs) -> None:
        engine = message.engine_index
        for started in message.started:
            self._started(engine, started)
        if message.handles:
            handles = memoryview(message.handles).cast("q").tolist()
            counts = memoryview(message.counts).cast("i").tolist()
            self._tokens(engine, message.timestamp, handles, counts)
        if message.stats is not None:
            self._state(engine, message.stats)

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        timeline = self._timelines.pop(handle, None)
        if timeline is None:
            return
        series, now = self.series[timeline.engine], time.time()
        series.inc(f"request_success[{reason!s}]")
        series.observe("e2e_request_latency_seconds", now - timeline.request.arrival_time)
        series.observe("request_prompt_tokens", timeline.num_prompt)
        series.observe("request_generation_tokens", num_tokens)
        series.observe("request_num_preemptions", timeline.num_preemptions)
        params = timeline.request.params
        if isinstance(params, SamplingParams) and params.max_tokens is not None:
            series.observe("request_params_max_tokens", params.max_tokens)
        if timeline.index == 0:
            series.observe("request_params_n", timeline.n)
        if timeline.scheduled:
            series.observe("request_queue_time_seconds", timeline.scheduled - timeline.queued)
        if timeline.first_token:
            decode = timeline.last_token - timeline.first_token
            series.observe(
                "request_prefill_time_seconds", timeline.first_token - timeline.scheduled
            )
            series.observe("request_decode_time_seconds", decode)
            series.observe(
                "request_inference_time_seconds", timeline.last_token - timeline.scheduled
            )
            series.observe("request_time_per_output_token_seconds", decode / max(num_tokens - 1, 1))
            computed = timeline.num_prompt - timeline.num_cached
            series.observe("request_prefill_kv_computed_tokens", computed)
        self._leave_group(timeline, num_tokens)

    # ------------------------------------------------------------------ parts of a message

    def _started(self, engine: int, started: Started) -> None:
        timeline = self._timelines.get(started.handle)
        if timeline is None:
            return
        timeline.engine = engine
        if started.resumed:
            timeline.num_preemptions += 1
        elif not timeline.scheduled:
            timeline.num_cached = started.num_cached_tokens
            timeline.queued, timeline.scheduled = started.queued_time, started.scheduled_time

    def _tokens(
        self, engine: int, now: float, handles: Sequence[int], counts: Sequence[int]
    ) -> None:
        """Tokens of a step. Requests that had their last token in the same step share a gap."""
        timelines, series = self._timelines, self.series[engine]
        #: last token's time → tokens since (first tokens are not in it)
        gaps: dict[float, int] = {}
        total = prompts = 0
        for i, handle in enumerate(handles):
            timeline = timelines.get(handle)
            if timeline is None:
                continue
            count = counts[i] if counts else 1
            total += count
            last, timeline.last_token = timeline.last_token, now
            if not last:
                timeline.first_token = last = now
                count -= 1
                prompts += self._first_token(series, timeline)
            if count == 1:
                gaps[last] = gaps.get(last, 0) + 1
            elif count:
                gap = (now - last) / count
                series.observe_times("inter_token_latency_seconds", gap, count)
        series.inc("generation_tokens", total)
        series.observe("iteration_tokens_total", prompts + total)
        for last, times in gaps.items():
            series.observe_times("inter_token_latency_seconds", now - last, times)

    @staticmethod
    def _first_token(series: Series, timeline: RequestTimeline) -> int:
        """The prompt is done. It counts once for the n sequences that share it, as in usage.
        Returns the tokens that count.
        """
        wait = time.time() - timeline.request.arrival_time
        series.observe("time_to_first_token_seconds", wait)
        if timeline.index:
            return 0
        computed = timeline.num_prompt - timeline.num_cached
        series.inc("prompt_tokens", timeline.num_prompt)
        series.inc("prompt_tokens_by_source[local_compute]", computed)
        series.inc("prompt_tokens_by_source[local_cache_hit]", timeline.num_cached)
        series.inc("prompt_tokens_cached", timeline.num_cached)
        series.inc(f"prompt_tokens_cached_by_source[{CACHE_TIERS[0]}]", timeline.num_cached)
        return timeline.num_prompt

    def _state(self, engine: int, stats: Stats) -> None:
        series = self.series[engine]
        deferred = stats.num_waiting - stats.waiting_by_reason.get("capacity", 0)
        gauges = (stats.num_running, stats.num_waiting, deferred, stats.kv_cache_usage)
        # With several processes the one that sets a gauge last is right.
        if gauges != self._gauges[engine] or self._shared:
            self._gauges[engine] = gauges
            series.set("num_requests_running", stats.num_running)
            series.set("num_requests_waiting", stats.num_waiting)
            series.set("kv_cache_usage_perc", stats.kv_cache_usage)
            series.set("num_requests_waiting_by_reason[capacity]", stats.num_waiting - deferred)
            series.set("num_requests_waiting_by_reason[deferred]", deferred)
        if stats.counters is not None:
            if stats.counters.num_steps:
                series.observe("step_tokens", stats.step_tokens)
            growth = _counter_values(stats.counters)
            if any(growth):
                for metric, amount in zip(ENGINE_COUNTERS.values(), growth, strict=True):
                    series.inc(metric.name, amount)
        if stats.drafts is not None and self._counts_drafts:
            self._drafts(series, stats.drafts)
        for metric, times in zip(BLOCK_METRICS, stats.block_times, strict=False):
            for seconds in memoryview(times).cast("f"):
                series.observe(metric.name, seconds)

    @staticmethod
    def _drafts(series: Series, drafts: DraftStats) -> None:
        series.inc("spec_decode_num_drafts", drafts.rows)
        series.inc("spec_decode_num_draft_tokens", drafts.tokens)
        series.inc("spec_decode_num_accepted_tokens", sum(drafts.accepted))
        for place, accepted in enumerate(drafts.accepted):
            series.inc(f"spec_decode_num_accepted_tokens_per_pos[{place}]", accepted)

    def _leave_group(self, timeline: RequestTimeline, num_tokens: int) -> None:
        name = "request_max_num_generation_tokens"
        group = self._groups.get(timeline.request.share_group) if timeline.n > 1 else None
        if group is None:
            self.series[timeline.engine].observe(name, num_tokens)
            return
        group.num_unfinished -= 1
        group.longest = max(group.longest, num_tokens)
        if not group.num_unfinished:
            del self._groups[timeline.request.share_group]
            self.series[timeline.engine].observe(name, group.longest)


def _make(metric: Metric, edges: tuple[float, ...], registry: CollectorRegistry) -> Any:
    name = f"{metric.prefix}:{metric.name}"
    labels = ["model_name", "engine", *([metric.label] if metric.label else [])]
    if metric.kind == "counter":
        return Counter(name, metric.help, labels, registry=registry)
    if metric.kind == "gauge":
        return Gauge(name, metric.help, labels, registry=registry, multiprocess_mode="mostrecent")
    return Histogram(name, metric.help, labels, registry=registry, buckets=edges)


def _admission_rejections(registry: CollectorRegistry, model_name: str) -> Counter:
    counter = Counter(
        "vllm:admission_rejections",
        "Requests rejected by a queue limit, by reason.",
        ["model_name", "reason"],
        registry=registry,
    )
    for reason in ("max_num_queued_reqs", "max_num_queued_tokens"):
        counter.labels(model_name=model_name, reason=reason)
    return counter


class _CacheInfo:
    """`vllm:cache_config_info`: 1, with the KV cache's configuration as labels.

    The number of blocks is known when an engine reports it; its series then replaces the first.
    """

    def __init__(
        self, registry: CollectorRegistry, info: dict[str, object], num_engines: int
    ) -> None:
        self._info = {
            **info,
            "num_gpu_blocks": None,
            "kv_cache_size_tokens": None,
            "kv_cache_max_concurrency": None,
        }
        self._gauge = Gauge(
            "vllm:cache_config_info",
            "The configuration of the KV cache.",
            [*self._info, "engine"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._labels: dict[int, list[str]] = {}
        if not shares_metrics():
            # In a shared folder a series cannot be replaced by a better one.
            for engine in range(num_engines):
                self._set(engine, self._info)

    def set_size(self, message: Ready) -> None:
        tokens = message.cache_tokens
        self._set(
            message.engine_index,
            {
                **self._info,
                "num_gpu_blocks": message.num_blocks,
                "kv_cache_size_tokens": tokens,
                "kv_cache_max_concurrency": round(tokens / max(message.max_model_len, 1), 2),
            },
        )

    def _set(self, engine: int, info: dict[str, object]) -> None:
        labels = [str(value) for value in info.values()] + [str(engine)]
        old = self._labels.get(engine)
        if old == labels:
            return
        self._gauge.labels(*labels).set(1)
        if old is not None:
            self._gauge.remove(*old)
        self._labels[engine] = labels
