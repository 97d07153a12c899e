"""Throughput over concurrency: more users get more tokens in total, fewer each (277), and wait for
each token about as evenly as one does (70).
"""

from __future__ import annotations

import statistics

from benchmarks.claims.claim import Curve, Finding, Row, Setup
from benchmarks.claims.drive import engine, jobs, percentile_ms, tokens_per_second

_USERS = (1, 2, 4, 8, 16, 32, 64)
_PROMPT, _OUTPUT = 64, 64


def measure(setup: Setup) -> Finding:
    points = []
    with engine(model=setup.model, max_num_seqs=64, max_model_len=256) as server:
        for users in _USERS:
            rounds = []
            for _ in range(setup.rounds):
                work = jobs(setup.prompts.take(2 * users, _PROMPT), _OUTPUT)
                total = tokens_per_second(work, server.run(work, users))
                gaps = [gap for job in work for gap in job.gaps]
                rounds.append((total, percentile_ms(gaps, 50), percentile_ms(gaps, 99)))
            total, p50, p99 = (statistics.median(r[i] for r in rounds) for i in range(3))
            points.append(
                {
                    "users": users,
                    "tokens_per_s": total,
                    "tokens_per_s_each": total / users,
                    "p50_itl_ms": p50,
                    "p99_itl_ms": p99,
                }
            )
    one, many = points[0], points[-1]
    row = Row(
        "277",
        "more users raise total throughput and slow each one",
        f"{many['users']} users: {many['tokens_per_s']:.0f} tok/s, "
        f"{many['tokens_per_s_each']:.1f} each",
        f"1 user: {one['tokens_per_s']:.0f} tok/s",
        many["tokens_per_s"] / one["tokens_per_s"],
    )
    curves = tuple(
        Curve("closed loop", "users", field, points)
        for field in ("tokens_per_s", "tokens_per_s_each", "p50_itl_ms", "p99_itl_ms")
    )
    steady = [point for point in points if point["users"] in (1, 8, 32)]
    ratios = [point["p99_itl_ms"] / point["p50_itl_ms"] for point in steady]
    predictable = Row(
        "70",
        "the slowest token waits little longer than the median one (p99/p50 ITL)",
        "; ".join(
            f"{point['users']} users: {ratio:.2f}"
            for point, ratio in zip(steady[1:], ratios[1:], strict=True)
        ),
        f"1 user: {ratios[0]:.2f}",
        ratios[0] / max(ratios[1:]),
    )
    return Finding([row, predictable], curves)
