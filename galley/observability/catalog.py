"""The metrics of an engine, as data: vLLM's names, labels, buckets and meanings.

Counters are named without the suffix `_total`, which the text format adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from galley.config.buckets import BucketFamily
from galley.messages import exposed_counters


@dataclass(frozen=True)
class Metric:
    """One family.

    Attributes:
        label: a label besides model_name and engine, and its values.
        buckets: name of a histogram's buckets (`bounds`).
        prefix: "galley" for those that vLLM does not have.
    """

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"] = "counter"
    label: str | None = None
    values: tuple[str, ...] = ()
    buckets: BucketFamily | None = None
    prefix: str = "vllm"


def _histogram(name: str, buckets: BucketFamily, help: str) -> Metric:
    return Metric(name, help, "histogram", buckets=buckets)


FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
WAIT_REASONS = ("capacity", "deferred")
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
CACHE_TIERS = ("device", "host", "disk")


def _engine_counter(full_name: str, help: str) -> Metric:
    prefix, _, name = full_name.partition(":")
    return Metric(name, help, prefix=prefix)


#: Field of `messages.Counters` → the metric that it is added to.
ENGINE_COUNTERS = {field: _engine_counter(*metric) for field, metric in exposed_counters().items()}

METRICS = (
    *ENGINE_COUNTERS.values(),
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
    Metric("external_prefix_cache_queries", "Queries of caches behind a KV connector, in tokens."),
    Metric("external_prefix_cache_hits", "Hits of caches behind a KV connector, in tokens."),
    Metric("mm_cache_queries", "Multi-modal cache queries, in items."),
    Metric("mm_cache_hits", "Multi-modal cache hits, in items."),
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
    _histogram("request_prompt_tokens", "request_tokens", "Prompt tokens of a request."),
    _histogram("request_generation_tokens", "request_tokens", "Tokens generated for a request."),
    _histogram(
        "iteration_tokens_total",
        "iteration_tokens",
        "Prompt tokens whose prompt a step has completed, and tokens that it has generated.",
    ),
    Metric(
        "step_tokens",
        "Tokens computed in an engine step.",
        "histogram",
        buckets="iteration_tokens",
        prefix="galley",
    ),
    _histogram(
        "request_max_num_generation_tokens",
        "request_tokens",
        "Most tokens of the answers to a request.",
    ),
    _histogram("request_params_n", "request_params_n", "The request parameter n."),
    _histogram("request_params_max_tokens", "request_tokens", "The request parameter max_tokens."),
    _histogram("time_to_first_token_seconds", "time_to_first_token", "Arrival to first token."),
    _histogram(
        "inter_token_latency_seconds", "inter_token_latency", "Gap between two tokens of a request."
    ),
    _histogram(
        "request_time_per_output_token_seconds",
        "inter_token_latency",
        "Mean gap between tokens of a request.",
    ),
    _histogram("e2e_request_latency_seconds", "request_latency", "Arrival to end."),
    _histogram("request_queue_time_seconds", "request_latency", "Time in the WAITING phase."),
    _histogram("request_inference_time_seconds", "request_latency", "Time in the RUNNING phase."),
    _histogram("request_prefill_time_seconds", "request_latency", "Time in the PREFILL phase."),
    _histogram("request_decode_time_seconds", "request_latency", "Time in the DECODE phase."),
    _histogram(
        "request_num_preemptions", "request_num_preemptions", "How often a request was preempted."
    ),
    _histogram(
        "request_prefill_kv_computed_tokens",
        "request_tokens",
        "KV tokens computed for a prompt, cached ones left out.",
    ),
)

#: Only with --kv-cache-metrics; in the order of `Stats.block_times`.
BLOCK_METRICS = (
    _histogram(
        "kv_block_lifetime_seconds", "kv_cache_residency", "Life of a KV block, to its eviction."
    ),
    _histogram(
        "kv_block_idle_before_evict_seconds",
        "kv_cache_residency",
        "Last use of a KV block to its eviction.",
    ),
    _histogram(
        "kv_block_reuse_gap_seconds", "kv_cache_residency", "Gap between two uses of a KV block."
    ),
)


def draft_metrics(most: int) -> tuple[Metric, ...]:
    """Metrics of speculative decoding with at most `most` drafts of a sequence and step."""
    if not most:
        return ()
    return (
        Metric("spec_decode_num_drafts", "Number of spec decoding drafts."),
        Metric("spec_decode_num_draft_tokens", "Number of draft tokens."),
        Metric("spec_decode_num_accepted_tokens", "Number of accepted tokens."),
        Metric(
            "spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens per draft position.",
            label="position",
            values=tuple(map(str, range(most))),
        ),
    )


_FIXED: dict[BucketFamily, tuple[float, ...]] = {
    "iteration_tokens": (1, *(2**e for e in range(3, 15))),
    "request_params_n": (1, 2, 5, 10, 20),
    "kv_cache_residency": (
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60),
        *(120, 300, 600, 1200, 1800),
    ),
    "request_num_preemptions": (1, 2, 3, 4, 5, 10, 20),
    "time_to_first_token": (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
    ),
    "inter_token_latency": (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    ),
    "request_latency": (
        *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
        *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
    ),
}


def bounds(
    family: BucketFamily, max_model_len: int, custom: Mapping[str, list[float]]
) -> tuple[float, ...]:
    """Upper bounds: those of --custom-histogram-buckets, else vLLM's."""
    if family in custom:
        return tuple(custom[family])
    if family == "request_tokens":
        return _one_two_five(max_model_len)
    return _FIXED[family]


def _one_two_five(largest: int) -> tuple[float, ...]:
    bounds = [m * 10**e for e in range(12) for m in (1, 2, 5)]
    return tuple(b for b in bounds if b <= max(largest, 1))
