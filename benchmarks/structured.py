"""Throughput under JSON schemas against the same requests without: pairs of runs in one process.

    python -m benchmarks.structured [--model DIR] [--pairs 7] [--tokens 128] [--cpu-time]

Both sides produce the same number of tokens: the schema asks for more than fit. The order within a
pair alternates, and the ratio is the median over the pairs. Forced tokens are off unless the row
says so: with them a constrained request needs fewer steps than tokens. With --cpu-time one thread
computes and its CPU seconds are counted: for a machine that does other work, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

from galley import LLM, SamplingParams
from galley.request import StructuredOutputsParams

#: Many strings: nearly all tokens of an answer are free within the schema.
TEXTS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "string", "minLength": 20, "maxLength": 60},
    "minItems": 40,
    "maxItems": 60,
}
#: Long keys: most tokens of an answer are certain.
RECORDS: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "temperature_in_degrees_celsius": {"type": "integer", "minimum": 0, "maximum": 40},
            "relative_humidity_in_percent": {"type": "integer", "minimum": 0, "maximum": 100},
            "is_measured_automatically": {"type": "boolean"},
        },
        "required": [
            "temperature_in_degrees_celsius",
            "relative_humidity_in_percent",
            "is_measured_automatically",
        ],
        "additionalProperties": False,
    },
    "minItems": 40,
    "maxItems": 60,
}
PROMPT = "Write the measurements of the last days as JSON. "


@dataclass
class Run:
    """One side of a pair."""

    tokens: int
    seconds: float
    steps: int

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def run(llm: LLM, rows: int, options: argparse.Namespace, schema: dict[str, Any] | None) -> Run:
    tokens = options.tokens
    clock = time.process_time if options.cpu_time else time.perf_counter
    constraint = None
    if schema is not None:
        constraint = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    params = [
        SamplingParams(
            max_tokens=tokens,
            temperature=0.8,
            seed=seed,
            ignore_eos=schema is None,
            structured_outputs=constraint,
        )
        for seed in range(rows)
    ]
    steps, begin = llm._core.counters.num_steps, clock()
    outputs = llm.generate([PROMPT] * rows, params, use_tqdm=False)
    seconds = clock() - begin
    produced = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert produced == rows * tokens, "both sides have the same number of tokens"
    return Run(produced, seconds, llm._core.counters.num_steps - steps)


def compare(llm: LLM, rows: int, options: argparse.Namespace, name: str) -> str:
    """A line of the table."""
    schema, jump = (RECORDS, True) if name == "records, forced tokens" else (TEXTS, False)
    llm._core.constrained.jump_forward = jump
    costs = llm._core.counters
    for warm in (schema, None):
        run(llm, rows, options, warm)
    masks, fill, advance = costs.masks, costs.mask_seconds, costs.advance_seconds
    pairs = []
    steps = 0
    for i in range(options.pairs):
        sides = {}
        for side in (schema, None) if i % 2 else (None, schema):
            sides[side is not None] = run(llm, rows, options, side)
        pairs.append((sides[True].rate, sides[False].rate))
        steps = sides[True].steps
    ratios = sorted(a / b for a, b in pairs)
    masks = costs.masks - masks
    per_mask = (costs.mask_seconds - fill) / masks * 1e6
    per_row = (costs.advance_seconds - advance) / masks * 1e6
    own, free = (statistics.median(side) for side in zip(*pairs, strict=True))
    return (
        f"| {name} | {rows} | {own:.0f} | {free:.0f} | {statistics.median(ratios):.3f} "
        f"({ratios[0]:.2f}–{ratios[-1]:.2f}) | {per_mask:.1f} | {per_row:.1f} "
        f"| {steps} of {options.tokens} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    flags: dict[str, Any] = {"structured_outputs_config": {"backend": options.backend}}
    if options.cpu_time:
        flags["num_threads"] = 1
    with LLM(options.model, max_model_len=1024, **flags) as llm:
        print(
            "| schema | requests | tokens/s | unconstrained | ratio | µs to fill a mask "
            "| µs to advance a row | steps |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for name in ("texts", "records, forced tokens"):
            for rows in (1, 32):
                print(compare(llm, rows, options, name), flush=True)


if __name__ == "__main__":
    main()
