"""Chats beside a long prompt: chunked prefill and the token budget (269, 278, S11)."""

from __future__ import annotations

import statistics

from benchmarks.claims.claim import Curve, Finding, Row, Setup
from benchmarks.claims.drive import Engine, Job, engine, jobs, percentile_ms

_CHATS, _CHAT_PROMPT, _CHAT_OUTPUT = 15, 32, 64
_LONG, _LENGTH = 8000, 8192
_BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096)
_STEPS_BEFORE = 8


def measure(setup: Setup) -> Finding:
    long = setup.some(_LONG, 1024)
    flags = {"model": setup.model, "max_num_seqs": 16, "max_model_len": _LENGTH}
    points = []
    for budget in _BUDGETS:
        with engine(**flags, max_num_batched_tokens=budget) as chunked:
            points.append({"budget": budget, **figures(setup, chunked, long)})
    with engine(**flags, enable_chunked_prefill=False, max_num_batched_tokens=_LENGTH) as unchunked:
        without = figures(setup, unchunked, long)
    best = min(points, key=lambda point: point["p99_itl_ms"])
    default = next(point for point in points if point["budget"] == 2048)
    rows = [
        Row(
            "269, S11",
            f"chunked prefill: p99 ITL of {_CHATS} chats beside a prompt of {long:,} tokens",
            f"budget {point['budget']}: {point['p99_itl_ms']:.1f} ms",
            f"unchunked: {without['p99_itl_ms']:.1f} ms",
            without["p99_itl_ms"] / point["p99_itl_ms"],
        )
        for point in (best, default)
    ]
    small, large = points[0], points[-1]
    rows.append(
        Row(
            "278",
            "a larger token budget serves the long prompt sooner, a smaller one the chats",
            f"budget {large['budget']}: long TTFT {large['long_ttft_ms']:.0f} ms, "
            f"chats' p99 ITL {large['p99_itl_ms']:.1f} ms",
            f"budget {small['budget']}: {small['long_ttft_ms']:.0f} ms, "
            f"{small['p99_itl_ms']:.1f} ms",
            small["long_ttft_ms"] / large["long_ttft_ms"],
        )
    )
    curves = (
        Curve("chats beside a long prompt", "budget", "p99_itl_ms", points),
        Curve("chats beside a long prompt", "budget", "long_ttft_ms", points),
    )
    return Finding(rows, curves)


def figures(setup: Setup, side: Engine, long: int) -> dict[str, float]:
    """Medians over the rounds."""
    rounds = [one_round(setup, side, long) for _ in range(setup.rounds)]
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def one_round(setup: Setup, side: Engine, long: int) -> dict[str, float]:
    """Chats decode; after some steps the long prompt comes; until all have ended."""
    chats = jobs(setup.prompts.take(_CHATS, _CHAT_PROMPT), _CHAT_OUTPUT)
    late = Job(setup.prompts.take(1, long)[0], 8)
    for chat in chats:
        side.send(chat)
    left = _CHATS + 1
    for _ in range(_STEPS_BEFORE):
        left -= side.step()
    side.send(late)
    while left:
        left -= side.step()
    gaps = [gap for chat in chats for gap in chat.gaps]
    return {
        "p50_itl_ms": percentile_ms(gaps, 50),
        "p99_itl_ms": percentile_ms(gaps, 99),
        "long_ttft_ms": late.ttft * 1e3,
    }
