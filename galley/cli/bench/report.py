"""Text report of a run, in vLLM's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from galley.cli.bench import acceptance
from galley.cli.bench.metrics import METRICS

_WIDTH = 50
_LABELS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}

Line = tuple[str, str]


def heading(text: str, fill: str = "=") -> str:
    return f" {text} ".center(_WIDTH, fill) if text else fill * _WIDTH


def line(label: str, value: str) -> str:
    return f"{label:<40} {value:<10}".rstrip()


def counts(result: Mapping[str, Any]) -> list[Line]:
    """Lines for requests, tokens and rates."""
    rows: list[Line] = [
        ("Successful requests:", str(result["completed"])),
        ("Failed requests:", str(result["failed"])),
    ]
    if result.get("max_concurrency"):
        rows.append(("Maximum request concurrency:", str(result["max_concurrency"])))
    if result.get("request_rate") not in (None, "inf"):
        rows.append(("Request rate configured (RPS):", f"{result['request_rate']:.2f}"))
    rows += [
        ("Benchmark duration (s):", f"{result['duration']:.2f}"),
        ("Total input tokens:", str(result["total_input_tokens"])),
        ("Total generated tokens:", str(result["total_output_tokens"])),
        ("Request throughput (req/s):", f"{result['request_throughput']:.2f}"),
    ]
    if result["request_goodput"] is not None:
        rows.append(("Request goodput (req/s):", f"{result['request_goodput']:.2f}"))
    rows += [
        ("Output token throughput (tok/s):", f"{result['output_throughput']:.2f}"),
        ("Peak output token throughput (tok/s):", f"{result['max_output_tokens_per_s']:.2f}"),
        ("Peak concurrent requests:", f"{result['max_concurrent_requests']:.2f}"),
        ("Total token throughput (tok/s):", f"{result['total_token_throughput']:.2f}"),
    ]
    return rows


def sharing(result: Mapping[str, Any]) -> list[Line]:
    """Lines for cache reuse, fairness and CPU use of the load generator."""
    rows: list[Line] = []
    if result["cache_reuse"] is not None:
        reuse = f"{result['cached_prompt_tokens']} ({result['cache_reuse']:.1%})"
        rows.append(("Prompt tokens from the prefix cache:", reuse))
    if result["num_clients"] > 1:
        low, high = result["client_tokens_per_s_min"], result["client_tokens_per_s_max"]
        spread = f"{result['fairness_index']:.3f} ({low:.1f}-{high:.1f} tok/s)"
        rows.append((f"Fairness of {result['num_clients']} clients (Jain):", spread))
    rows.append(("Client CPU (s):", f"{result['client_cpu']:.2f}"))
    return rows


def latencies(result: Mapping[str, Any], metric: str) -> list[Line]:
    """Lines for mean, median and percentiles of one metric, in milliseconds."""
    label = _LABELS[metric]
    rows = [
        (f"Mean {label} (ms):", f"{result[f'mean_{metric}_ms']:.2f}"),
        (f"Median {label} (ms):", f"{result[f'median_{metric}_ms']:.2f}"),
    ]
    for key, value in result.items():
        if key.startswith("p") and key.endswith(f"_{metric}_ms"):
            rows.append((f"P{key[1 : -len(metric) - 4]} {label} (ms):", f"{value:.2f}"))
    return rows


def report(result: Mapping[str, Any], cost: Sequence[Line] = ()) -> str:
    """Report of one run, in vLLM's format."""
    lines = [heading("Serving Benchmark Result")]
    lines += [line(*row) for row in counts(result)]
    for metric, title in METRICS.items():
        if f"mean_{metric}_ms" in result:
            lines += [heading(title, "-"), *(line(*row) for row in latencies(result, metric))]
    lines += [heading("Reuse and Fairness", "-"), *(line(*row) for row in sharing(result))]
    if drafts := acceptance.lines(result):
        lines += [heading("Speculative Decoding", "-"), *(line(*row) for row in drafts)]
    if cost:
        lines += [heading("Cost", "-"), *(line(*row) for row in cost)]
    return "\n".join([*lines, heading("")])
