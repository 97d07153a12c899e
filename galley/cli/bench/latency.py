"""`galley bench latency`: latency of one batch without HTTP, measured repeatedly."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from galley.cli.bench.offline import (
    engine_parser,
    percentiles,
    random_prompts,
    write_json,
)
from galley.cli.parser import engine_flags, make
from galley.errors import ConfigError
from galley.request import SamplingParams


@dataclass(frozen=True)
class LatencyFlags:
    """Latency"""

    input_len: int = 32
    """Prompt tokens."""
    output_len: int = 128
    """Tokens to generate."""
    batch_size: int = 8
    """Requests per batch."""
    n: int = 1
    """Completions per request."""
    num_iters_warmup: int = 10
    """Warm-up batches, not measured."""
    num_iters: int = 30
    """Measured batches."""
    temperature: float = 1.0
    """Sampling temperature; 0 = greedy."""
    disable_detokenize: bool = False
    """Do not convert output tokens to text."""
    output_json: str | None = None
    """Write the result to this JSON file."""


def main(argv: list[str]) -> int:
    parser = engine_parser(
        "bench latency",
        "Measure the latency of one batch of requests, through LLM.",
        [LatencyFlags],
        "galley bench latency --batch-size 1 --input-len 128",
    )
    values = parser.read(argv)
    flags = make(LatencyFlags, values)
    if min(flags.num_iters, flags.batch_size, flags.input_len, flags.output_len, flags.n) < 1:
        raise ConfigError("sizes and --num-iters must be at least 1.", field="num_iters")
    from galley.llm import LLM

    params = SamplingParams(
        n=flags.n,
        temperature=flags.temperature,
        max_tokens=flags.output_len,
        ignore_eos=True,
        detokenize=not flags.disable_detokenize,
    )
    latencies = []
    with LLM(**engine_flags(values)) as llm:
        tokenizer = llm.get_tokenizer().plain
        for i in range(flags.num_iters_warmup + flags.num_iters):
            ids = random_prompts(tokenizer, flags.batch_size, flags.input_len, i)
            begin = time.perf_counter()
            llm.generate(ids, params, use_tqdm=False)
            if i >= flags.num_iters_warmup:
                latencies.append(time.perf_counter() - begin)
        name = llm.config.model.served_model_name[0]
    result = {
        "model_id": name,
        "avg_latency": float(np.mean(latencies)),
        "latencies": latencies,
        "percentiles": percentiles(latencies),
    }
    print(f"Avg latency: {result['avg_latency']:.4f} seconds")
    for percentile, value in percentiles(latencies).items():
        print(f"{percentile}% percentile latency: {value:.4f} seconds")
    write_json(flags.output_json, result)
    return 0
