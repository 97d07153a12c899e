"""Metrics as values, for `LLM.get_metrics` (vLLM's shapes)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.samples import Sample


@dataclass(frozen=True)
class Metric:
    """One series. `name` has no `_total`; labels are as in /metrics."""

    name: str
    labels: dict[str, str]


@dataclass(frozen=True)
class Counter(Metric):
    """Only grows."""

    value: int


@dataclass(frozen=True)
class Vector(Metric):
    """Counters by position."""

    values: list[int]


@dataclass(frozen=True)
class Gauge(Metric):
    """Goes up and down."""

    value: float


@dataclass(frozen=True)
class Histogram(Metric):
    """Observations; `buckets` counts those up to each bound ("+Inf" last)."""

    count: int
    sum: float
    buckets: dict[str, int]


def read_metrics(registry: CollectorRegistry) -> list[Metric]:
    """All of the engine's metrics now."""
    metrics: list[Metric] = []
    for family in registry.collect():
        if not family.name.startswith(("vllm:", "galley:")):
            continue
        if family.type == "histogram":
            metrics += _histograms(family)
            continue
        if family.name == "vllm:spec_decode_num_accepted_tokens_per_pos":
            metrics += _vectors(family)
            continue
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            labels = dict(sample.labels)
            if family.type == "counter":
                metrics.append(Counter(family.name, labels, int(sample.value)))
            else:
                metrics.append(Gauge(family.name, labels, sample.value))
    return metrics


def _vectors(family: Family) -> Iterable[Vector]:
    series: dict[tuple[tuple[str, str], ...], dict[int, int]] = {}
    for sample in family.samples:
        if not sample.name.endswith("_created"):
            key = tuple((k, v) for k, v in sample.labels.items() if k != "position")
            series.setdefault(key, {})[int(sample.labels["position"])] = int(sample.value)
    for key, values in series.items():
        yield Vector(family.name, dict(key), [values[at] for at in sorted(values)])


def _histograms(family: Family) -> Iterable[Histogram]:
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in family.samples:
        key = tuple((k, v) for k, v in sample.labels.items() if k != "le")
        series.setdefault(key, []).append(sample)
    for key, samples in series.items():
        value = {s.name.removeprefix(family.name): s.value for s in samples}
        buckets = {s.labels["le"]: int(s.value) for s in samples if s.name.endswith("_bucket")}
        yield Histogram(family.name, dict(key), int(value["_count"]), value["_sum"], buckets)
