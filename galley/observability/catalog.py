"""The metrics of an engine, as data: vLLM's names, labels, buckets and meanings.

Counters are named without the suffix `_total`, which the text format adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Buckets = Literal["tokens", "step", "n", "first_token", "token", "request", "preemptions", "block"]


@dataclass(frozen=True)
class Metric:
    """One family.

    Attributes:
        label: a label besides model_name and engine, and its values.
        buckets: of a histogram, by name (`bounds`).
    """

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"] = "counter"
    label: str | None = None
    values: tuple[str, ...] = ()
    buckets: Buckets | None = None


def _histogram(name: str, buckets: Buckets, help: str) -> Metric:
    return Metric(name, help, "histogram", buckets=buckets)


FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
WAIT_REASONS = ("capacity", "deferred")
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
CACHE_TIERS = ("device", "host", "disk")

METRICS = (
    Metric("estimated_flops_per_gpu", "Estimated floating point operations per device."),
    Metric("estimated_read_bytes_per_gpu", "Estimated bytes read from memory per device."),
    Metric("estimated_write_bytes_per_gpu", "Estimated bytes written to memory per device."),
    Metric("num_requests_running", "Number of requests in model execution batches.", "gauge"),
    Metric("num_requests_waiting", "Number of requests waiting to be processed.", "gauge"),
    Metric(
        "num_requests_waiting_by_reason",
        "Number of waiting requests by reason.",
        "gauge",
        "reason",
        WAIT_REASONS,
    ),
    Metric("engine_sleep_state", "1 for the state it is in.", "gauge", "sleep_state", SLEEP_STATES),
    Metric("kv_cache_usage_perc", "KV-cache usage, 0 to 1.", "gauge"),
    Metric("prefix_cache_queries", "Prefix cache queries, in tokens."),
    Metric("prefix_cache_hits", "Prefix cache hits, in tokens."),
    Metric("external_prefix_cache_queries", "Queries of caches behind a KV connector, in tokens."),
    Metric("external_prefix_cache_hits", "Hits of caches behind a KV connector, in tokens."),
    Metric("mm_cache_queries", "Multi-modal cache queries, in items."),
    Metric("mm_cache_hits", "Multi-modal cache hits, in items."),
    Metric("num_preemptions", "Preemptions of running requests."),
    Metric("prompt_tokens", "Prompt tokens processed."),
    Metric(
        "prompt_tokens_by_source",
        "Prompt tokens by where their KV came from.",
        label="source",
        values=PROMPT_SOURCES,
    ),
    Metric("prompt_tokens_cached", "Prompt tokens whose KV was cached."),
    Metric(
        "prompt_tokens_cached_by_source",
        "Cached prompt tokens by the tier that had them.",
        label="source",
        values=CACHE_TIERS,
    ),
    Metric("generation_tokens", "Tokens generated."),
    Metric(
        "request_success",
        "Requests that have ended, by reason.",
        label="finished_reason",
        values=FINISH_REASONS,
    ),
    _histogram("request_prompt_tokens", "tokens", "Prompt tokens of a request."),
    _histogram("request_generation_tokens", "tokens", "Tokens generated for a request."),
    _histogram("iteration_tokens_total", "step", "Tokens computed in an engine step."),
    _histogram(
        "request_max_num_generation_tokens", "tokens", "Most tokens of the answers to a request."
    ),
    _histogram("request_params_n", "n", "The request parameter n."),
    _histogram("request_params_max_tokens", "tokens", "The request parameter max_tokens."),
    _histogram("time_to_first_token_seconds", "first_token", "Arrival to first token."),
    _histogram("inter_token_latency_seconds", "token", "Gap between two tokens of a request."),
    _histogram(
        "request_time_per_output_token_seconds", "token", "Mean gap between tokens of a request."
    ),
    _histogram("e2e_request_latency_seconds", "request", "Arrival to end."),
    _histogram("request_queue_time_seconds", "request", "Time in the WAITING phase."),
    _histogram("request_inference_time_seconds", "request", "Time in the RUNNING phase."),
    _histogram("request_prefill_time_seconds", "request", "Time in the PREFILL phase."),
    _histogram("request_decode_time_seconds", "request", "Time in the DECODE phase."),
    _histogram("request_num_preemptions", "preemptions", "How often a request was preempted."),
    _histogram(
        "request_prefill_kv_computed_tokens",
        "tokens",
        "KV tokens computed for a prompt, cached ones left out.",
    ),
)

#: Only with --kv-cache-metrics; in the order of `Stats.block_times`.
BLOCK_METRICS = (
    _histogram("kv_block_lifetime_seconds", "block", "Life of a KV block, to its eviction."),
    _histogram(
        "kv_block_idle_before_evict_seconds", "block", "Last use of a KV block to its eviction."
    ),
    _histogram("kv_block_reuse_gap_seconds", "block", "Gap between two uses of a KV block."),
)

_FIXED: dict[Buckets, tuple[float, ...]] = {
    "n": (1, 2, 5, 10, 20),
    "block": (
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60),
        *(120, 300, 600, 1200, 1800),
    ),
    "preemptions": (1, 2, 3, 4, 5, 10, 20),
    "first_token": (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
    ),
    "token": (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    ),
    "request": (
        *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
        *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
    ),
}


def bounds(buckets: Buckets, max_model_len: int, max_num_batched_tokens: int) -> tuple[float, ...]:
    """Upper bounds: 1-2-5 up to the model's length, powers of two up to the step's budget."""
    if buckets == "tokens":
        return _one_two_five(max_model_len)
    if buckets == "step":
        powers = [2**e for e in range(3, 31) if 2**e <= max_num_batched_tokens]
        return (1, *powers)
    return _FIXED[buckets]


def _one_two_five(largest: int) -> tuple[float, ...]:
    found = [m * 10**e for e in range(12) for m in (1, 2, 5)]
    return tuple(b for b in found if b <= max(largest, 1))
