"""`galley bench throughput`: how much an engine in this process gets through, without HTTP."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from galley.cli.bench.datasets import DataFlags, Sample, load_samples
from galley.cli.bench.offline import engine_parser, write_json
from galley.cli.parser import engine_flags, make
from galley.errors import ConfigError
from galley.request import SamplingParams


@dataclass(frozen=True)
class ThroughputFlags:
    """Throughput"""

    backend: Literal["vllm", "vllm-chat"] = "vllm"
    """vllm: complete the prompts. vllm-chat: send them as user messages. (vLLM's names;
    Galley runs in both cases.)"""
    n: int = 1
    """Completions per prompt."""
    num_warmups: int = 0
    """Warm-up requests, not measured."""
    temperature: float = 1.0
    """Sampling temperature; 0 = greedy."""
    disable_detokenize: bool = False
    """Do not convert output tokens to text."""
    output_json: str | None = None
    """Write the result to this JSON file."""
    disable_tqdm: bool = False
    """Hide the progress bar."""


def main(argv: list[str]) -> int:
    parser = engine_parser(
        "bench throughput",
        "Measure offline throughput: all requests at once, through LLM.",
        [ThroughputFlags, DataFlags],
        "galley bench throughput --dataset-name text --num-prompts 128",
        "galley bench throughput model.gguf --input-len 512 --output-len 64 --num-prompts 64",
    )
    values = parser.read(argv)
    flags, data = make(ThroughputFlags, values), make(DataFlags, values)
    if flags.n < 1:
        raise ConfigError("--n must be at least 1.", field="n")
    from galley.llm import LLM

    with LLM(**engine_flags(values)) as llm:
        tokenizer = llm.get_tokenizer().plain
        if flags.num_warmups:
            warm = replace(data, num_prompts=flags.num_warmups, seed=data.seed + 999983)
            run(llm, flags, load_samples(warm, tokenizer), False)
        result = run(llm, flags, load_samples(data, tokenizer), not flags.disable_tqdm)
        result = {"model_id": llm.config.model.served_model_name[0], **result}
    print(
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, "
        f"{result['output_tokens_per_second']:.2f} output tokens/s"
    )
    print(f"Total num prompt tokens:  {result['num_prompt_tokens']}")
    print(f"Total num output tokens:  {result['num_output_tokens']}")
    write_json(flags.output_json, result)
    return 0


def run(llm: Any, flags: ThroughputFlags, samples: list[Sample], shown: bool) -> dict[str, Any]:
    """Generate for all samples at once. Returns vLLM's result fields, and more."""
    params = [
        SamplingParams(
            n=flags.n,
            temperature=flags.temperature,
            max_tokens=sample.output_len,
            ignore_eos=True,
            detokenize=not flags.disable_detokenize,
        )
        for sample in samples
    ]
    begin = time.perf_counter()
    if flags.backend == "vllm-chat":
        conversations = [s.messages or [{"role": "user", "content": s.prompt}] for s in samples]
        outputs = llm.chat(conversations, params, use_tqdm=shown)
    else:
        outputs = llm.generate([s.prompt for s in samples], params, use_tqdm=shown)
    elapsed = time.perf_counter() - begin
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    generated = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
    return {
        "elapsed_time": elapsed,
        "num_requests": len(samples),
        "num_prompt_tokens": prompt,
        "num_output_tokens": generated,
        "total_num_tokens": prompt + generated,
        "requests_per_second": len(samples) / elapsed,
        "tokens_per_second": (prompt + generated) / elapsed,
        "output_tokens_per_second": generated / elapsed,
    }
