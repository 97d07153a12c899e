"""Chats beside a long prompt: chunked prefill, the token budget and the share of prompts in a step
(269, 278, S11)."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.claims.claim import Curve, Finding, Row, Setup
from benchmarks.claims.drive import Engine, Job, engine, jobs, percentile_ms

_CHATS, _CHAT_PROMPT, _CHAT_OUTPUT = 15, 32, 64
_LONG, _LENGTH = 8000, 8192
_BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096)
_SHARES = (128, 256, 512, 1024)
_STEPS_BEFORE = 8

Figures = dict[str, float]


def measure(setup: Setup) -> Finding:
    long = setup.some(_LONG, 1024)

    def run(**flags: Any) -> Figures:
        limits = {"max_num_seqs": 16, "max_model_len": _LENGTH}
        with engine("server", model=setup.model, **limits, **flags) as side:
            return figures(setup, side, long)

    budgets = [{"tokens": n, **run(max_num_batched_tokens=n)} for n in _BUDGETS]
    shares = [{"tokens": n, **run(mixed_prefill_tokens=n)} for n in _SHARES]
    default = run()
    without = run(enable_chunked_prefill=False, max_num_batched_tokens=_LENGTH)
    best = min(budgets, key=lambda point: point["p99_itl_ms"])
    widest = next(point for point in budgets if point["tokens"] == 2048)
    rows = [
        beside(long, "defaults of a server", default, without),
        beside(long, f"budget {best['tokens']}", best, without),
        beside(long, f"budget {widest['tokens']}, all for prompts", widest, without),
        trade(budgets[0], budgets[-1]),
    ]
    lines = {"token budget": budgets, "prompts' share, budget 2048": shares}
    curves = tuple(
        Curve(name, "tokens", field, points)
        for name, points in lines.items()
        for field in ("p99_itl_ms", "long_ttft_ms")
    )
    return Finding(rows, curves)


def beside(long: int, name: str, side: Figures, without: Figures) -> Row:
    return Row(
        "269, S11",
        f"chunked prefill: p99 ITL of {_CHATS} chats beside a prompt of {long:,} tokens",
        f"{name}: {side['p99_itl_ms']:.1f} ms, long TTFT {side['long_ttft_ms']:.0f} ms",
        f"unchunked: {without['p99_itl_ms']:.1f} ms, {without['long_ttft_ms']:.0f} ms",
        without["p99_itl_ms"] / side["p99_itl_ms"],
    )


def trade(small: Figures, large: Figures) -> Row:
    return Row(
        "278",
        "a larger token budget serves the long prompt sooner, a smaller one the chats",
        f"budget {large['tokens']}: long TTFT {large['long_ttft_ms']:.0f} ms, "
        f"chats' p99 ITL {large['p99_itl_ms']:.1f} ms",
        f"budget {small['tokens']}: {small['long_ttft_ms']:.0f} ms, {small['p99_itl_ms']:.1f} ms",
        small["long_ttft_ms"] / large["long_ttft_ms"],
    )


def figures(setup: Setup, side: Engine, long: int) -> Figures:
    """Medians over the rounds."""
    rounds = [one_round(setup, side, long) for _ in range(setup.rounds)]
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def one_round(setup: Setup, side: Engine, long: int) -> Figures:
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
