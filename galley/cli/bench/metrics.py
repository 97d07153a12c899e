"""Metrics from request outcomes: vLLM's result fields, plus cache reuse and fairness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from galley.cli.bench.backends import Outcome
from galley.errors import ConfigError

#: metric → its label in a report.
METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
_SLO_METRICS = ("ttft", "tpot", "e2el")


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """`("ttft:200", "tpot:20")` → milliseconds per metric. Raises ConfigError."""
    limits: dict[str, float] = {}
    for pair in pairs:
        name, separator, text = pair.partition(":")
        try:
            limit = float(text)
        except ValueError:
            limit = -1.0
        if not separator or name not in _SLO_METRICS or limit < 0:
            raise ConfigError(
                f"--goodput takes METRIC:MILLISECONDS with metrics {', '.join(_SLO_METRICS)}; "
                f"got {pair!r}.",
                field="goodput",
            )
        limits[name] = limit
    return limits


def parse_metrics(text: str) -> list[str]:
    """`"ttft,itl"` → names. Raises ConfigError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise ConfigError(
                f"--percentile-metrics knows {', '.join(METRICS)}; got {name!r}.",
                field="percentile_metrics",
            )
    return names


def parse_percentiles(text: str) -> list[float]:
    """`"50,99.9"` → numbers. Raises ConfigError for one outside 0 … 100."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [-1.0]
    if not values or not all(0 <= value <= 100 for value in values):
        raise ConfigError(
            f"--metric-percentiles takes numbers from 0 to 100 with commas; got {text!r}.",
            field="metric_percentiles",
        )
    return values


def percentile_name(percentile: float) -> str:
    """99.0 → "99", 99.9 → "99.9": as in the result's field names."""
    return str(int(percentile)) if percentile == int(percentile) else str(percentile)


def values_of(outcomes: Sequence[Outcome], metric: str) -> np.ndarray:
    """Values of a metric in milliseconds, over the successful requests."""
    done = [o for o in outcomes if o.success]
    values = {
        "ttft": lambda: [o.ttft for o in done],
        "tpot": lambda: [o.tpot for o in done if o.output_tokens > 1],
        "itl": lambda: [gap for o in done for gap in o.itls],
        "e2el": lambda: [o.latency for o in done],
    }[metric]()
    return np.asarray(values) * 1e3


def is_good(outcome: Outcome, limits: Mapping[str, float]) -> bool:
    """Whether a request succeeded within all limits (milliseconds)."""
    seconds = {"ttft": outcome.ttft, "tpot": outcome.tpot, "e2el": outcome.latency}
    return outcome.success and all(seconds[name] * 1e3 <= limit for name, limit in limits.items())


def jain_index(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all get the same, 1/n when one gets everything."""
    array = np.asarray(values, dtype=float)
    square = float((array**2).sum())
    return float(array.sum()) ** 2 / (len(array) * square) if square else 1.0


def fairness(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Fairness between clients, from each client's output tokens per second of its waiting time."""
    tokens: dict[int, int] = {}
    waited: dict[int, float] = {}
    for o in outcomes:
        tokens[o.client] = tokens.get(o.client, 0) + o.output_tokens
        waited[o.client] = waited.get(o.client, 0.0) + o.latency
    rates = [tokens[c] / waited[c] if waited[c] else 0.0 for c in sorted(tokens)]
    return {
        "num_clients": len(rates),
        "fairness_index": jain_index(rates),
        "client_tokens_per_s_min": min(rates, default=0.0),
        "client_tokens_per_s_max": max(rates, default=0.0),
    }


def peaks(outcomes: Sequence[Outcome]) -> tuple[float, int]:
    """Peak output pieces per second, and peak number of concurrent requests."""
    done = [o for o in outcomes if o.success]
    if not done:
        return 0.0, 0
    moments = [o.start + o.ttft + np.cumsum([0.0, *o.itls]) for o in done]
    seconds = (np.concatenate(moments) - min(o.start for o in done)).astype(int)
    edges = sorted(
        [(o.start, 1) for o in done] + [(o.start + o.latency, -1) for o in done],
    )
    running = np.cumsum([step for _, step in edges])
    return float(np.max(np.bincount(seconds))), int(np.max(running))


def summarize(
    outcomes: Sequence[Outcome],
    duration: float,
    goodput: Mapping[str, float],
    metrics: Sequence[str],
    percentiles: Sequence[float],
) -> dict[str, Any]:
    """Metrics of a run, under vLLM's field names where they exist.

    Args:
        duration: seconds from the first request sent to the last answer's end.
        goodput: limits in milliseconds; empty: `request_goodput` is None.
        metrics: metrics to report, with percentiles besides mean, median and deviation.
    """
    done = [o for o in outcomes if o.success]
    prompt_tokens = sum(o.prompt_tokens for o in done)
    output_tokens = sum(o.output_tokens for o in done)
    good = sum(is_good(o, goodput) for o in done)
    peak_tokens, peak_requests = peaks(outcomes)
    result: dict[str, Any] = {
        "duration": duration,
        "completed": len(done),
        "failed": len(outcomes) - len(done),
        "total_input_tokens": prompt_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(done) / duration,
        "request_goodput": good / duration if goodput else None,
        "output_throughput": output_tokens / duration,
        "total_token_throughput": (prompt_tokens + output_tokens) / duration,
        "max_output_tokens_per_s": peak_tokens,
        "max_concurrent_requests": peak_requests,
        # vLLM's audio metric: speed relative to real time.
        "rtfx": 0.0,
    }
    for metric in METRICS:
        values = values_of(outcomes, metric)
        if metric not in metrics or not len(values):
            continue
        result[f"mean_{metric}_ms"] = float(values.mean())
        result[f"median_{metric}_ms"] = float(np.median(values))
        result[f"std_{metric}_ms"] = float(values.std())
        for percentile in percentiles:
            name = f"p{percentile_name(percentile)}_{metric}_ms"
            result[name] = float(np.percentile(values, percentile))
    result |= reuse(done) | fairness(done)
    return result


def reuse(done: Sequence[Outcome]) -> dict[str, Any]:
    """Prompt tokens that the server took from its prefix cache; None if it does not report them."""
    reporting = [o for o in done if o.cached_tokens is not None]
    cached = sum(o.cached_tokens or 0 for o in reporting)
    prompt = sum(o.prompt_tokens for o in reporting)
    return {
        "cached_prompt_tokens": cached if reporting else None,
        "cache_reuse": cached / prompt if prompt else None,
    }


def details(outcomes: Sequence[Outcome], began: float) -> dict[str, Any]:
    """Per-request columns (`--save-detailed`), vLLM's names; times in seconds."""
    return {
        "input_lens": [o.prompt_tokens for o in outcomes],
        "output_lens": [o.output_tokens for o in outcomes],
        "ttfts": [o.ttft for o in outcomes],
        "itls": [o.itls for o in outcomes],
        "latencies": [o.latency for o in outcomes],
        "start_times": [o.start - began for o in outcomes],
        "queue_times": [o.queue_time for o in outcomes],
        "generated_texts": [o.text for o in outcomes],
        "errors": [o.error for o in outcomes],
        "clients": [o.client for o in outcomes],
    }
