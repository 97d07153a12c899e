"""The workloads: closed loops of greedy requests on windows of real text.

    W1 single stream    1 client    128 tokens                    128 out     8 requests
    W2 chat load       16 clients   256 shared + 64 own tokens     96 out    64 requests
    W3 prefill heavy    8 clients 1,024 tokens                     16 out    32 requests
    W4 saturated       64 clients   128 tokens                    128 out   128 requests
    L1 single stream    1 client    128 tokens                     64 out     2 requests
    L8 a few streams    8 clients   128 tokens                     64 out     8 requests
    LP a prompt         1 client  1,024 tokens                      1 out     2 requests

Prompts have exactly these lengths under SmolLM2's tokenizer, and each run uses other windows, so a
prefix cache helps only if a workload shares a prefix. L1, L8 and LP are for larger models, whose
tokenizers are made up: they get the token ids. Two unmeasured warm-up requests use another part of
the text. An answer whose length differs from the requested one is a failure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galley.cli.bench.backends import BACKENDS, Options
from galley.cli.bench.client import Target
from galley.cli.bench.datasets import Sample
from galley.cli.bench.datasets.text import Corpus
from galley.cli.bench.metrics import summarize
from galley.cli.bench.traffic import Run, Traffic, run_load
from galley.text.tokenizer import Tokenizer

_RUN, _WORKLOAD, _WARM_UP, _WARM_UP_WORKLOAD = 7919, 104729, 999983, 15485863
_WARM_UP_REQUESTS, _WARM_UP_OUTPUT = 2, 16


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens; `as_ids`: prompts are sent as token ids, not as text."""

    number: int
    concurrency: int
    shared: int
    own: int
    output: int
    requests: int
    as_ids: bool = False

    @property
    def prompt(self) -> int:
        return self.shared + self.own

    def samples(self, corpus: Corpus, run: int, seed: int = 1) -> list[Sample]:
        """The requests of a run."""
        prompts = corpus.prompts(
            self.requests, self.shared, self.own, seed + _RUN * run + _WORKLOAD * self.number
        )
        return [Sample(text, self.prompt, self.output) for text in prompts]

    def warm_up(self, corpus: Corpus, seed: int = 1) -> list[Sample]:
        """Warm-up requests, not measured."""
        text_seed = _WARM_UP + seed + _WARM_UP_WORKLOAD * self.number
        prompts = corpus.prompts(_WARM_UP_REQUESTS, self.shared, self.own, text_seed)
        output = min(self.output, _WARM_UP_OUTPUT)
        return [Sample(text, self.prompt, output) for text in prompts]


WORKLOADS = {
    "W1": Workload(1, 1, 0, 128, 128, 8),
    "W2": Workload(2, 16, 256, 64, 96, 64),
    "W3": Workload(3, 8, 0, 1024, 16, 32),
    "W4": Workload(4, 64, 0, 128, 128, 128),
    "L1": Workload(5, 1, 0, 128, 64, 2, as_ids=True),
    "L8": Workload(6, 8, 0, 128, 64, 8, as_ids=True),
    "LP": Workload(7, 1, 0, 1024, 1, 2, as_ids=True),
}


def send(
    base: str,
    model: str,
    samples: list[Sample],
    concurrency: int,
    tokenizer: Tokenizer | None = None,
) -> Run:
    """Send samples to a server's completions API, greedily, at most `concurrency` at a time.

    Args:
        tokenizer: prompts are sent as its token ids.
    """
    backend = BACKENDS["openai"]
    if tokenizer is not None:
        backend = replace(
            backend,
            body=lambda _, sample: {
                "prompt": tokenizer.encode(sample.prompt, add_special_tokens=False)
            },
        )
    traffic = Traffic(
        Target.of(base + "/v1/completions", {}),
        backend,
        Options(model, ignore_eos=True, extra={"temperature": 0, "seed": 1}),
        max_concurrency=concurrency,
    )
    return run_load(traffic, samples)


def figures(run: Run, samples: list[Sample]) -> dict[str, float]:
    """Figures of one run of a workload; times in ms. Short answers count as failures."""
    for outcome, sample in zip(run.outcomes, samples, strict=True):
        if outcome.success and outcome.output_tokens != sample.output_len:
            outcome.success, outcome.error = False, f"{outcome.output_tokens} tokens"
    result = summarize(run.outcomes, run.duration, {}, ["ttft", "itl", "tpot", "e2el"], [99])
    return {
        "wall_s": run.duration,
        "out_tok_s": result["output_throughput"],
        "total_tok_s": result["total_token_throughput"],
        "failures": result["failed"],
        "output_tokens": result["total_output_tokens"],
        "prompt_tokens": result["total_input_tokens"],
        "cached_tokens": result["cached_prompt_tokens"] or 0,
        "client_cpu_s": run.client_cpu,
        **{
            f"{metric}_{name}_ms": result.get(f"{field}_{metric}_ms", float("nan"))
            for metric in ("ttft", "itl", "tpot", "e2el")
            for name, field in (("p50", "median"), ("p99", "p99"))
        },
    }
