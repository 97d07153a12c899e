"""Messages between a frontend and an engine core (msgpack).

    frontend ── Add | Abort | Call ──▶ engine core
    frontend ◀── Ready | Outputs | Reply ── engine core

Each message is one frame of a connection (`engine.frames`), and a connection is a session: the
engine opens it with `Ready` once its model is loaded, and aborts what the client has requested when
it ends. Outputs carry the engine's epoch (its incarnation, counted by the launcher): a frontend
drops those of a dead engine and resubmits its requests, with the tokens that it has already, to the
next one. The outputs of a step travel as one message of columns per client.
"""

from __future__ import annotations

from typing import Annotated, Any, get_type_hints

import msgspec

from galley.request import Failure, Request


class Add(msgspec.Struct, tag="add"):
    """New requests, in arrival order."""

    requests: list[Request]


class Abort(msgspec.Struct, tag="abort"):
    """Abort these requests; unknown handles are ignored."""

    handles: list[int]


class Call(msgspec.Struct, tag="call"):
    """An operation by name, answered by one `Reply` with the same id."""

    id: int
    method: str
    args: list[Any] = []


class Started(msgspec.Struct, array_like=True):
    """A request was admitted to a slot (first time, or again after preemption)."""

    handle: int
    num_cached_tokens: int
    queued_time: float
    scheduled_time: float
    resumed: bool = False


class Finished(msgspec.Struct, array_like=True):
    """A request has ended. `stop_reason` is the stop token id that was hit, or a word;
    `pooled` the numbers of a request that pools, float32 little-endian bytes; `pooled_columns` of
    those that have a vector of each token the length of one, of others 0.
    """

    handle: int
    reason: int
    stop_reason: int | str | None = None
    error: Failure | None = None
    pooled: bytes | None = None
    pooled_columns: int = 0


class Logprobs(msgspec.Struct, array_like=True):
    """Columns of `batch.LogprobColumns`, with handles instead of rows. Little-endian bytes."""

    handles: bytes
    positions: bytes
    ranks: bytes
    indptr: bytes
    token_ids: bytes
    logprobs: bytes


def _exposed(name: str, help: str) -> msgspec.Meta:
    """Marks a counter that /metrics exposes, with its name and help text."""
    return msgspec.Meta(description=help, extra={"metric": name})


class Counters(msgspec.Struct, array_like=True):
    """Counters of an engine, from its start on.

    One object a core: its parts add to it directly. A counter that is marked with `_exposed` is in
    /metrics without further ado (`observability.catalog`).

    Attributes:
        prompt_tokens: that were computed.
    """

    num_steps: int = 0
    prompt_tokens: int = 0
    # fmt: off
    num_preemptions: Annotated[int, _exposed(
        "vllm:num_preemptions", "Preemptions of running requests.")] = 0
    prefix_queries: Annotated[int, _exposed(
        "vllm:prefix_cache_queries", "Prefix cache queries, in tokens.")] = 0
    prefix_hits: Annotated[int, _exposed(
        "vllm:prefix_cache_hits", "Prefix cache hits, in tokens.")] = 0
    resumed_queries: Annotated[int, _exposed(
        "galley:resumed_tokens", "Tokens of preempted requests when they were resumed.")] = 0
    resumed_hits: Annotated[int, _exposed(
        "galley:resumed_tokens_cached", "Those of them that were not recomputed.")] = 0
    flops: Annotated[float, _exposed(
        "vllm:estimated_flops_per_gpu", "Estimated floating point operations per device.")] = 0.0
    read_bytes: Annotated[float, _exposed(
        "vllm:estimated_read_bytes_per_gpu", "Estimated bytes read from memory per device.")] = 0.0
    write_bytes: Annotated[float, _exposed(
        "vllm:estimated_write_bytes_per_gpu", "Estimated bytes written to memory per device."
    )] = 0.0
    masks: Annotated[int, _exposed(
        "galley:structured_output_masks",
        "Masks filled for the tokens of requests with structured output.")] = 0
    mask_seconds: Annotated[float, _exposed(
        "galley:structured_output_mask_seconds",
        "Seconds that the engine spent filling these masks.")] = 0.0
    advance_seconds: Annotated[float, _exposed(
        "galley:structured_output_advance_seconds",
        "Seconds that the engine spent advancing the states of their constraints.")] = 0.0
    forced_tokens: Annotated[int, _exposed(
        "galley:structured_output_forced_tokens",
        "Tokens of these requests that were certain and so not sampled.")] = 0
    # fmt: on


def exposed_counters() -> dict[str, tuple[str, str]]:
    """Field of `Counters` → name and help text in /metrics."""
    found: dict[str, tuple[str, str]] = {}
    for field, hint in get_type_hints(Counters, include_extras=True).items():
        for meta in getattr(hint, "__metadata__", ()):
            found[field] = meta.extra["metric"], meta.description
    return found


class DraftStats(msgspec.Struct, array_like=True):
    """Drafts of some steps.

    Attributes:
        rows: sequences and steps with drafts.
        tokens: drafts that were computed.
        accepted: those that were accepted, by place: 0 is a sequence's first draft of a step.
    """

    rows: int
    tokens: int
    accepted: list[int]


class Stats(msgspec.Struct, array_like=True):
    """State of an engine after a step, and what has happened since its last message.

    Attributes:
        step_tokens: tokens computed in the step.
        model_seconds: time between plan and result, since the engine's start.
        memory_short, reserved_blocks: load is shed because memory runs short, and the KV blocks
            that no request gets meanwhile.
        counters: growth since they were last sent. Each step's go to one client: over all clients
            they add up. None for the others.
        block_times: lifetimes, idle times and gaps of cached blocks as float32 bytes, with
            --kv-cache-metrics; sent like the counters.
        drafts: computed and accepted ones; sent like the counters.
    """

    num_running: int = 0
    num_waiting: int = 0
    waiting_by_reason: dict[str, int] = {}
    kv_cache_usage: float = 0.0
    step_tokens: int = 0
    model_seconds: float = 0.0
    memory_short: bool = False
    reserved_blocks: int = 0
    counters: Counters | None = None
    block_times: list[bytes] = []
    drafts: DraftStats | None = None


class Outputs(msgspec.Struct, tag="out"):
    """The results of one step for one client.

    Attributes:
        handles: int64 bytes [k], the requests that produced tokens.
        counts: int32 bytes [k], tokens of each; empty means one each.
        token_ids: int32 bytes.
        drafts: int32 bytes [k, 2], computed and accepted drafts of each; empty where there are
            none, and without --per-request-spec-decode-metrics.
    """

    step: int
    epoch: int
    engine_index: int
    timestamp: float
    handles: bytes = b""
    counts: bytes = b""
    token_ids: bytes = b""
    drafts: bytes = b""
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    started: list[Started] = []
    finished: list[Finished] = []
    stats: Stats | None = None


class Ready(msgspec.Struct, tag="ready"):
    """An engine has loaded its model and accepts requests.

    Attributes:
        epoch: incarnation, from 1.
        cache_tokens: tokens of context that the KV cache has room for.
        sleep_level: level of its sleep, None while awake.
    """

    engine_index: int
    epoch: int
    max_model_len: int
    num_blocks: int
    block_size: int
    batch_invariant: bool
    cache_tokens: int = 0
    sleep_level: int | None = None
    info: dict[str, Any] = {}


class Reply(msgspec.Struct, tag="reply"):
    """Answer to a `Call`; `error` is the message of its exception, `refused` says that the caller
    is at fault.
    """

    id: int
    result: Any = None
    error: str | None = None
    refused: bool = False


FromClient = Add | Abort | Call
FromEngine = Ready | Outputs | Reply
