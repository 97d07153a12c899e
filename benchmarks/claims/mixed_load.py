"""Chats beside a long prompt, and a short one that arrives right behind it: chunked prefill, steps
sized by time, the token budget and the prompts' share of a step (269, 278, S11).
"""

from __future__ import annotations

import statistics
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from benchmarks.claims.claim import Curve, Finding, Row, Setup
from benchmarks.claims.drive import Engine, Job, engine, jobs, percentile_ms

_CHATS, _CHAT_PROMPT, _CHAT_OUTPUT = 15, 32, 64
_LONG, _LENGTH, _SHORT = 8000, 8192, 20
_BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096)
_SHARES = (128, 256, 512, 1024)
_TARGETS = (30, 60, 120, 240)
_STEPS_BEFORE = 8

Figures = dict[str, float]


def measure(setup: Setup) -> Finding:
    long = setup.some(_LONG, 1024)

    def make(**flags: Any) -> AbstractContextManager[Engine]:
        limits = {"max_num_seqs": 17, "max_model_len": _LENGTH}
        return engine("server", model=setup.model, **limits, **flags)

    def run(**flags: Any) -> Figures:
        with make(**flags) as side:
            return medians([one_round(setup, side, long) for _ in range(setup.rounds)])

    with (
        make() as default,
        make(enable_chunked_prefill=False, max_num_batched_tokens=_LENGTH) as unchunked,
    ):
        pairs = [
            (one_round(setup, default, long), one_round(setup, unchunked, long))
            for _ in range(setup.rounds)
        ]
    without = medians([other for _, other in pairs])
    budgets = [{"tokens": n, **run(max_num_batched_tokens=n)} for n in _BUDGETS]
    shares = [{"tokens": n, **run(mixed_prefill_tokens=n)} for n in _SHARES]
    targets = [{"tokens": n, **run(target_itl=n)} for n in _TARGETS]
    best = min(budgets, key=lambda point: point["p99_itl_ms"])
    widest = next(point for point in budgets if point["tokens"] == 2048)
    rows = [
        in_turn(long, pairs),
        beside(long, f"budget {best['tokens']}", best, without),
        beside(long, f"budget {widest['tokens']}, all for prompts", widest, without),
        trade(budgets[0], budgets[-1]),
    ]
    lines = {
        "token budget": budgets,
        "prompts' share, budget 2048": shares,
        "--target-itl in ms": targets,
    }
    curves = tuple(
        Curve(name, "tokens", field, points)
        for name, points in lines.items()
        for field in ("p99_itl_ms", "long_ttft_ms")
    )
    return Finding(rows, curves)


def in_turn(long: int, pairs: list[tuple[Figures, Figures]]) -> Row:
    """Server defaults compared with unchunked prefill, per round."""
    default, without = (medians([pair[i] for pair in pairs]) for i in (0, 1))
    each = [other["p99_itl_ms"] / ours["p99_itl_ms"] for ours, other in pairs]
    row = beside(long, "defaults of a server", default, without)
    return replace(row, ratio=statistics.median(each), spread=(min(each), max(each)))


def beside(long: int, name: str, side: Figures, without: Figures) -> Row:
    return Row(
        "269, S11",
        f"chunked prefill: p99 ITL of {_CHATS} chats beside a prompt of {long:,} tokens",
        f"{name}: {in_words(side)}",
        f"unchunked: {in_words(without)}",
        without["p99_itl_ms"] / side["p99_itl_ms"],
    )


def in_words(side: Figures) -> str:
    return (
        f"{side['p99_itl_ms']:.1f} ms (median {side['p50_itl_ms']:.1f}), TTFT of the long prompt "
        f"{side['long_ttft_ms']:.0f} ms, of a short one behind it {side['short_ttft_ms']:.0f} ms"
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


def medians(rounds: list[Figures]) -> Figures:
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def one_round(setup: Setup, side: Engine, long: int) -> Figures:
    """Start chats, send the long prompt and a short one after some decode steps, and run until all
    end.
    """
    chats = jobs(setup.prompts.take(_CHATS, _CHAT_PROMPT), _CHAT_OUTPUT)
    late, last = (Job(setup.prompts.take(1, n)[0], 8) for n in (long, _SHORT))
    for chat in chats:
        side.send(chat)
    left = _CHATS + 2
    for _ in range(_STEPS_BEFORE):
        left -= side.step()
    side.send(late)
    left -= side.step()
    side.send(last)
    while left:
        left -= side.step()
    gaps = [gap for chat in chats for gap in chat.gaps]
    return {
        "p50_itl_ms": percentile_ms(gaps, 50),
        "p99_itl_ms": percentile_ms(gaps, 99),
        "long_ttft_ms": late.ttft * 1e3,
        "short_ttft_ms": last.ttft * 1e3,
    }
