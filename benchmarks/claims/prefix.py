"""Prefix cache: savings of a hit, and overhead without hits (271, 285)."""

from __future__ import annotations

from typing import Any

from benchmarks.claims.claim import Finding, Row, Setup, compare
from benchmarks.claims.drive import engine, jobs, tokens_per_second

_LENGTHS = (256, 1024, 4096)
_OWN = 16


def measure(setup: Setup) -> Finding:
    return Finding([*hits(setup), unique(setup)])


def hits(setup: Setup) -> list[Row]:
    """TTFT of a prompt with a cached prefix, and of one without."""
    rows = []
    with engine(model=setup.model, max_num_seqs=4, max_model_len=4608) as cached:
        for length in _LENGTHS:

            def first_token(warm: bool, length: int = length) -> float:
                before, now = jobs(setup.prompts.take(2, length, shared=length - _OWN), 1)
                cached.reset()
                if warm:
                    cached.run([before])
                cached.run([now])
                assert (now.cached > 0) == warm
                return now.ttft * 1e3

            rows.append(
                compare(
                    "271",
                    f"TTFT of a prompt of {length:,} tokens, all but {_OWN} seen before",
                    ("cached", lambda: first_token(True)),
                    ("not cached", lambda: first_token(False)),
                    setup.rounds,
                    "ms",
                    False,
                )
            )
    return rows


def unique(setup: Setup) -> Row:
    """Throughput of prompts that share nothing, with the cache on and off. A warm-up
    round touches all of the pool's memory, which the two sides would do differently."""
    count = setup.some(128, 16)
    flags: dict[str, Any] = {"model": setup.model, "max_num_seqs": 16, "max_model_len": 512}
    flags["num_gpu_blocks_override"] = 16 * 512 // 16 + 1
    with (
        engine(**flags, enable_prefix_caching=True) as on,
        engine(**flags, enable_prefix_caching=False) as off,
    ):

        def run(cache: bool) -> float:
            work = jobs(setup.prompts.take(count, 256), 8)
            return tokens_per_second(work, (on if cache else off).run(work))

        run(True), run(False)
        return compare(
            "285",
            "prefix cache with unique prompts costs next to nothing",
            ("on", lambda: run(True)),
            ("off", lambda: run(False)),
            setup.rounds,
            "output tok/s",
            True,
        )
