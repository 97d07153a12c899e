"""Code shared by `bench throughput` and `bench latency`: engine flags, prompts, JSON output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from galley.cli.bench.flags import BenchParser
from galley.config.resolve import SECTIONS
from galley.text.tokenizer import Tokenizer


def engine_parser(command: str, summary: str, own: list[type], *examples: str) -> BenchParser:
    """A parser with the given flags, all engine flags, and MODEL."""
    return BenchParser(
        command,
        summary + " Without MODEL, the built-in one is measured.",
        [*own, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf or hub name"),),
        examples=examples,
    )


def random_prompts(tokenizer: Tokenizer, count: int, length: int, seed: int) -> list[list[int]]:
    """Prompts of random ordinary tokens, as ids [count][length]."""
    from galley.cli.bench.datasets.random_tokens import ordinary_tokens

    rng = np.random.default_rng(seed)
    ids: list[list[int]] = rng.choice(ordinary_tokens(tokenizer), (count, length)).tolist()
    return ids


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Write a result to the path of --output-json, if given."""
    if path is not None:
        Path(path).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def percentiles(values: list[float]) -> dict[str, float]:
    """vLLM's percentiles of a list of seconds: 10, 25, 50, 75, 90, 99."""
    return {str(p): float(np.percentile(values, p)) for p in (10, 25, 50, 75, 90, 99)}
