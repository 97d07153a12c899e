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

from typing import Any

import msgspec

from galley.request import Request


class Add(msgspec.Struct, tag="add"):
    """New requests, in arrival order."""

    requests: list[Request]


class Abort(msgspec.Struct, tag="abort"):
    """The client no longer wants these; unknown handles are ignored."""

    handles: list[int]


class Call(msgspec.Struct, tag="call"):
    """A rare operation by name, answered by one `Reply` with the same id."""

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
    """The one end of a request. `stop_reason` is the stop token id that was hit, or a word."""

    handle: int
    reason: int
    stop_reason: int | str | None = None
    error: str | None = None


class Logprobs(msgspec.Struct, array_like=True):
    """Columns of `batch.LogprobColumns`, with handles in place of rows. Little-endian bytes."""

    handles: bytes
    positions: bytes
    ranks: bytes
    indptr: bytes
    token_ids: bytes
    logprobs: bytes


class Stats(msgspec.Struct, array_like=True):
    """State of the scheduler after a step, and counters since the engine's start.

    What the counters (from num_preemptions on, step_tokens left out) grow by in a step is told to
    one of the clients that it concerns: over all clients they add up.

    Attributes:
        model_seconds: between plan and result, since the engine's start; told to all.
        memory_short, reserved_blocks: load is shed for want of memory, and the KV blocks that
            nobody gets meanwhile.
        flops, read_bytes, write_bytes: estimates, with --enable-mfu-metrics.
        block_times: lifetimes, idle times and gaps of cached blocks as float32 bytes, each told
            once, with --kv-cache-metrics.
    """

    num_running: int = 0
    num_waiting: int = 0
    waiting_by_reason: dict[str, int] = {}
    kv_cache_usage: float = 0.0
    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    step_tokens: int = 0
    num_steps: int = 0
    flops: float = 0.0
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    block_times: list[bytes] = []
    model_seconds: float = 0.0
    memory_short: bool = False
    reserved_blocks: int = 0


class Outputs(msgspec.Struct, tag="out"):
    """All that one step yields for one client.

    Attributes:
        handles: int64 bytes [k], the requests that produced tokens.
        counts: int32 bytes [k], tokens of each; empty means one each.
        token_ids: int32 bytes.
    """

    step: int
    epoch: int
    engine_index: int
    timestamp: float
    handles: bytes = b""
    counts: bytes = b""
    token_ids: bytes = b""
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    started: list[Started] = []
    finished: list[Finished] = []
    stats: Stats | None = None


class Ready(msgspec.Struct, tag="ready"):
    """An engine has loaded its model and accepts requests.

    Attributes:
        epoch: incarnation, from 1.
        sleep_level: of the sleep that it is in, None while it is awake.
    """

    engine_index: int
    epoch: int
    max_model_len: int
    num_blocks: int
    block_size: int
    batch_invariant: bool
    sleep_level: int | None = None
    info: dict[str, Any] = {}


class Reply(msgspec.Struct, tag="reply"):
    """Answer to a `Call`; `error` is the message of what it raised, `refused` that this is the
    caller's fault.
    """

    id: int
    result: Any = None
    error: str | None = None
    refused: bool = False


FromClient = Add | Abort | Call
FromEngine = Ready | Outputs | Reply
