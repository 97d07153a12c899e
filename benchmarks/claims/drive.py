"""Runs an engine core in this process under a load, and records the time of each token.

Without HTTP or a second process, only the claimed effect is measured. Loads are closed loops, or
requests sent at chosen steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from galley.cli.bench.datasets.text import Corpus, read_text
from galley.config.resolve import Usage, from_kwargs
from galley.engine.assembly import assemble
from galley.loader import resolve_source
from galley.messages import Outputs
from galley.request import Request, SamplingParams
from galley.text.tokenizer import load_tokenizer


@dataclass
class Job:
    """A request: prompt token ids and number of output tokens. Times are perf_counter seconds."""

    prompt: list[int]
    output: int
    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    cached: int = 0

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return np.diff(self.times).tolist()


class Prompts:
    """Prompts of real text with exact lengths, different on each call."""

    def __init__(self, model: str) -> None:
        config = from_kwargs({"model": model}, "offline")
        source = resolve_source(config.model, config.load)
        self._tokenizer = load_tokenizer(source.path)
        self._corpus = Corpus(read_text(), self._tokenizer)
        self._seed = 0

    def take(self, count: int, length: int, shared: int = 0) -> list[list[int]]:
        """`count` prompts of `length` tokens, the first `shared` of them common to all."""
        self._seed += 1
        texts = self._corpus.prompts(count, shared, length - shared, 7919 * self._seed)
        return [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]


class Engine:
    """An engine core stepped explicitly; `usage` selects the defaults of its flags."""

    def __init__(self, usage: Usage = "offline", **flags: Any) -> None:
        self.core = assemble(from_kwargs(flags, usage)).core
        self._jobs: dict[int, Job] = {}
        self._handle = 0

    def send(self, job: Job) -> None:
        self._handle += 1
        self._jobs[self._handle] = job
        prompt = np.asarray(job.prompt, np.int32)
        job.sent = time.perf_counter()
        self.core.add(
            [
                Request(
                    handle=self._handle,
                    request_id=str(self._handle),
                    prompt_token_ids=prompt.tobytes(),
                    params=SamplingParams(
                        temperature=0, max_tokens=job.output, seed=0, ignore_eos=True
                    ),
                    max_total_tokens=len(prompt) + job.output,
                )
            ]
        )

    def step(self) -> int:
        """Run a step; return the number of finished requests. Raises RuntimeError if one failed."""
        ended = 0
        for _, outputs in self.core.step():
            self._note(outputs, time.perf_counter())
            for finish in outputs.finished:
                if finish.error:
                    raise RuntimeError(finish.error)
                del self._jobs[finish.handle]
                ended += 1
        return ended

    def _note(self, outputs: Outputs, now: float) -> None:
        handles = np.frombuffer(outputs.handles, np.int64)
        counts = np.frombuffer(outputs.counts, np.int32)
        if not len(counts):
            counts = np.ones(len(handles), np.int32)
        for started in outputs.started:
            self._jobs[started.handle].cached = started.num_cached_tokens
        for handle, count in zip(handles, counts, strict=True):
            self._jobs[int(handle)].times += [now] * int(count)

    def run(self, jobs: Sequence[Job], at_a_time: int | None = None) -> float:
        """Run all jobs, at most `at_a_time` concurrently. Returns seconds until the last token."""
        begin = time.perf_counter()
        waiting = list(reversed(jobs))
        running = 0
        while waiting or running:
            while waiting and (at_a_time is None or running < at_a_time):
                self.send(waiting.pop())
                running += 1
            running -= self.step()
        return time.perf_counter() - begin

    def reset(self) -> None:
        self.core.reset_prefix_cache()


@contextmanager
def engine(usage: Usage = "offline", **flags: Any) -> Iterator[Engine]:
    """An engine, shut down on exit."""
    instance = Engine(usage, **flags)
    try:
        yield instance
    finally:
        instance.core.shutdown()


def jobs(prompts: Sequence[list[int]], output: int | Sequence[int]) -> list[Job]:
    """A job for each prompt; `output` is one length for all, or one per prompt."""
    lengths = [output] * len(prompts) if isinstance(output, int) else output
    return [Job(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]


def tokens_per_second(done: Sequence[Job], seconds: float) -> float:
    return sum(len(job.times) for job in done) / seconds


def percentile_ms(seconds: Sequence[float], percentile: float) -> float:
    return float(np.percentile(seconds, percentile)) * 1e3
