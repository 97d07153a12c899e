"""Sixty-four requests that differ in everything, and what an answer is compared by."""

from __future__ import annotations

import pathlib
import random
from array import array
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from galley import LLM, SamplingParams
from galley.outputs import RequestOutput

TEXT = (pathlib.Path(__file__).parents[1] / "data" / "opticks.txt").read_text()
MAX_TOKENS = 12

STYLES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 0.9, "seed": 11, "logprobs": 0},
    {"temperature": 1.3, "top_p": 0.9, "seed": 12},
    {"temperature": 0.8, "top_k": 20, "min_p": 0.05, "seed": 13, "logprobs": 3},
    {"temperature": 0.0, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 0.7, "repetition_penalty": 1.2, "seed": 14},
    {"temperature": 1.0, "logit_bias": {28: -5.0, 30: 3.0}, "seed": 15},
    {"temperature": 0.0, "min_tokens": 8, "bad_words": ["the"]},
    {"temperature": 0.0, "prompt_logprobs": 1, "logprobs": 1},
]


def prompts(count: int = 64) -> list[str]:
    """Windows of real text, 8 to 600 characters long, no two alike."""
    rng = random.Random(7)
    starts = rng.sample(range(0, len(TEXT) - 700, 97), count)
    return [TEXT[s : s + rng.choice((8, 40, 120, 300, 600))] for s in starts]


def params(count: int = 64, **more: Any) -> list[SamplingParams]:
    return [
        SamplingParams(
            max_tokens=MAX_TOKENS, ignore_eos=True, **{**STYLES[i % len(STYLES)], **more}
        )
        for i in range(count)
    ]


def answer(output: RequestOutput) -> Any:
    """All that must be equal: tokens, texts, every logprob to the last bit, the ends."""
    return (
        output.prompt_token_ids,
        _logprobs(output.prompt_logprobs),
        [
            (o.index, o.token_ids, o.text, _logprobs(o.logprobs), o.finish_reason, o.stop_reason)
            for o in output.outputs
        ],
    )


def lose_engine(llm: LLM, other: LLM) -> None:
    """Compute requests that are waiting in `llm` until two have some tokens. Then its engine is
    lost, and that of `other` takes them over.
    """
    client = llm.client
    unfinished = client.outputs.sequences
    while sum(len(sequence.token_ids) > 3 for sequence in unfinished.values()) < 2:
        client.step()
    client.core = other._core
    client.core.add(
        [
            msgspec.structs.replace(
                sequence.request, output_token_ids=array("i", sequence.token_ids).tobytes()
            )
            for sequence in unfinished.values()
        ]
    )


def _logprobs(columns: Any) -> Any:
    if columns is None:
        return None
    return [
        None if c is None else {k: (v.logprob, v.rank, v.decoded_token) for k, v in c.items()}
        for c in columns
    ]


@dataclass
class Events:
    """Events of the engine while it was watched."""

    rows: list[int] = field(default_factory=list)
    chunks: dict[int, int] = field(default_factory=dict)
    """Per handle: steps that computed a part of its prompt."""

    @property
    def most_rows(self) -> int:
        return max(self.rows)

    @property
    def most_chunks(self) -> int:
        return max(self.chunks.values())


def watch(llm: LLM) -> Events:
    """Look at every plan from now on."""
    events = Events()
    core = llm._core
    submit = core.executor.submit

    def watched(plan: Any) -> Any:
        events.rows.append(len(plan.slots))
        table = core.scheduler.table
        prefill = table.num_computed[plan.slots] < table.num_prompt[plan.slots]
        for handle in table.handles[plan.slots[np.flatnonzero(prefill)]].tolist():
            events.chunks[handle] = events.chunks.get(handle, 0) + 1
        return submit(plan)

    core.executor.submit = watched  # type: ignore[method-assign]
    return events
