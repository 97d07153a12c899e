"""Continuous against static batching, paged against contiguous KV memory (268, 276)."""

from __future__ import annotations

import numpy as np

from benchmarks.claims.claim import Finding, Row, Setup, compare
from benchmarks.claims.drive import Engine, engine, jobs, tokens_per_second

_BATCH = 16
_PROMPT = 64
_LONGEST = 256
_KV_TOKENS = 4096


def measure(setup: Setup) -> Finding:
    return Finding([*continuous(setup), *paged(setup)])


def output_lengths(count: int) -> list[int]:
    """As chats have them: many short answers, few long ones, up to `_LONGEST` tokens."""
    drawn = np.random.default_rng(0).exponential(48, count).astype(int) + 4
    return np.minimum(drawn, _LONGEST - _PROMPT).tolist()


def continuous(setup: Setup) -> list[Row]:
    """A static batch waits for its longest answer; a continuous one fills its places at once."""
    count = setup.some(64, _BATCH)
    lengths = output_lengths(count)
    with engine(model=setup.model, max_num_seqs=_BATCH, max_model_len=_LONGEST) as both:

        def run(static: bool) -> float:
            work = jobs(setup.prompts.take(count, _PROMPT), lengths)
            if not static:
                return tokens_per_second(work, both.run(work))
            batches = [work[i : i + _BATCH] for i in range(0, count, _BATCH)]
            return tokens_per_second(work, sum(both.run(batch) for batch in batches))

        return [
            compare(
                "268, 276",
                f"continuous batching, {_BATCH} places, answers of unlike length",
                ("continuous", lambda: run(False)),
                ("static", lambda: run(True)),
                setup.rounds,
                "output tok/s",
                True,
            )
        ]


def paged(setup: Setup) -> list[Row]:
    """The same KV memory: blocks as they are needed, or `_LONGEST` tokens reserved for each
    request, so that only memory / `_LONGEST` of them fit at a time."""
    count = setup.some(128, 32)
    lengths = output_lengths(count)
    reserved = _KV_TOKENS // _LONGEST
    flags = {"model": setup.model, "max_model_len": _LONGEST, "block_size": 16}
    blocks = _KV_TOKENS // 16 + 1
    with (
        engine(**flags, max_num_seqs=64, num_gpu_blocks_override=blocks) as pages,
        engine(**flags, max_num_seqs=reserved, num_gpu_blocks_override=blocks) as whole,
    ):

        def run(side: Engine) -> float:
            work = jobs(setup.prompts.take(count, _PROMPT), lengths)
            return tokens_per_second(work, side.run(work))

        return [
            compare(
                "268",
                f"paged KV cache, memory for {_KV_TOKENS:,} tokens",
                ("blocks on demand", lambda: run(pages)),
                (f"{_LONGEST} tokens reserved each ({reserved} at a time)", lambda: run(whole)),
                setup.rounds,
                "output tok/s",
                True,
            )
        ]
