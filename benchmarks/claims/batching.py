"""Continuous against static batching, paged against contiguous KV memory (268, 276)."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.claims.claim import Finding, Row, Setup, compare
from benchmarks.claims.drive import Engine, engine, jobs, tokens_per_second

_BATCH = 16
_PROMPT = 64
_LONGEST = 192
#: Maximum request length, which a contiguous cache must reserve per request.
_RESERVED = 2048
_KV_TOKENS = 8192


def measure(setup: Setup) -> Finding:
    return Finding([continuous(setup), paged(setup)])


def output_lengths(count: int) -> list[int]:
    """Lengths as in chats: many short answers, few long ones, up to `_LONGEST` tokens."""
    lengths = np.random.default_rng(0).exponential(48, count).astype(int) + 4
    return np.minimum(lengths, _LONGEST).tolist()


def continuous(setup: Setup) -> Row:
    """A static batch runs all its rows until its longest answer ends; continuous batching gives a
    finished row to the next request. Only requested tokens are counted."""
    count = setup.some(64, _BATCH)
    lengths = output_lengths(count)
    with engine(model=setup.model, max_num_seqs=_BATCH, max_model_len=256) as both:

        def run_continuous() -> float:
            work = jobs(setup.prompts.take(count, _PROMPT), lengths)
            return tokens_per_second(work, both.run(work))

        def run_static() -> float:
            prompts = setup.prompts.take(count, _PROMPT)
            seconds = 0.0
            for first in range(0, count, _BATCH):
                longest = max(lengths[first : first + _BATCH])
                seconds += both.run(jobs(prompts[first : first + _BATCH], longest))
            return sum(lengths) / seconds

        return compare(
            "268, 276",
            f"continuous batching, {_BATCH} rows, answers of varying length",
            ("continuous", run_continuous),
            ("static", run_static),
            setup.rounds,
            "output tok/s",
            True,
        )


def paged(setup: Setup) -> Row:
    """The same KV memory, allocated as blocks on demand, or as `_RESERVED` tokens per request, so
    that only memory / `_RESERVED` requests fit at a time."""
    count = setup.some(128, 32)
    lengths = output_lengths(count)
    reserved = _KV_TOKENS // _RESERVED
    flags: dict[str, Any] = {"model": setup.model, "max_model_len": _RESERVED, "block_size": 16}
    flags["num_gpu_blocks_override"] = _KV_TOKENS // 16 + 1
    with (
        engine(**flags, max_num_seqs=48) as pages,
        engine(**flags, max_num_seqs=reserved) as whole,
    ):

        def run(side: Engine) -> float:
            work = jobs(setup.prompts.take(count, _PROMPT), lengths)
            return tokens_per_second(work, side.run(work))

        return compare(
            "268",
            f"paged KV cache, memory for {_KV_TOKENS:,} tokens",
            ("blocks on demand", lambda: run(pages)),
            (
                f"{_RESERVED:,} tokens reserved each, {reserved} requests at a time",
                lambda: run(whole),
            ),
            setup.rounds,
            "output tok/s",
            True,
        )
