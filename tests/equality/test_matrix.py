"""Families and every weight format of the registry, alone and in a batch: the same bits.

No kernel of a format knows the family, so each format meets two families, and each family six or
seven formats. A format that is added later is in here by itself. Of the types of GGUF that become
4-bit codes in a table one stands for all.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import fields
from typing import Any

import msgspec
import pytest

from galley.quant.gguf_iq import WIDENED
from galley.quant.registry import FORMATS
from galley.request import SamplingParams
from tests.fuzz.cases import FAMILIES, Case, draw, draw_asks, draw_flags, draw_squeezes
from tests.fuzz.run import run_alone, run_together

ONE_OF_MANY = "IQ2_S"
KINDS = sorted(set(FORMATS) - set(WIDENED) | {ONE_OF_MANY})
NAMES = sorted(FAMILIES)
PAIRS = sorted(
    (NAMES[(i + step) % len(NAMES)], dtype) for i, dtype in enumerate(KINDS) for step in (0, 3)
)
#: Others that a request meets, in turn.
COMPANY = (1, 2, 5, 12, 31, 64, 128)
#: Requests of a case that are asked alone, too.
PICKS = 6


def case_of(family: str, dtype: str, others: int, threads: int) -> Case:
    """An engine and a workload, which differ from pair to pair."""
    rng = random.Random(f"{family} {dtype}")
    flags = draw_flags(rng, family)
    # Fewer tokens a step take thousands of steps: tests/fuzz has such engines.
    flags["max_num_batched_tokens"] = max(flags["max_num_batched_tokens"], 33)
    if others > 31:
        # All of them at once, so that a row of a step is one among as many: no prompt is held back.
        flags = {name: value for name, value in flags.items() if "prefill" not in name}
        flags |= {"max_num_seqs": 129, "max_num_batched_tokens": rng.choice((129, 300, 2048))}
        flags |= {"enable_chunked_prefill": True, "num_gpu_blocks_override": 1300}
    flags["num_threads"] = threads
    asks = draw_asks(rng, flags["scheduling_policy"], 1 + others)
    return Case(others, family, dtype, flags, asks, squeezes=draw_squeezes(rng))


@pytest.mark.parametrize("index", range(len(PAIRS)), ids=["-".join(pair) for pair in PAIRS])
def test_alone_and_in_company(index: int) -> None:
    others = COMPANY[index % len(COMPANY)]
    case = case_of(*PAIRS[index], others, threads=1 + index % 2)
    for ask in case.asks[:: max(len(case.asks) // PICKS, 1)]:
        ask.leave = None
    picks = [i for i, ask in enumerate(case.asks) if ask.leave is None]
    picks = picks[:: max(len(picks) // PICKS, 1)]
    together, _ = run_together(case)
    assert [together[i] for i in picks] == run_alone(case, picks)


def test_one_among_128() -> None:
    """Each of them alone, once: the default model's format, arriving at random."""
    case = case_of("LlamaForCausalLM", "Q4_1", 128, threads=2)
    case.flags |= {"max_num_batched_tokens": 2048, "num_gpu_blocks_override": 2500}
    for ask in case.asks:
        ask.leave = None
    together, events = run_together(case)
    assert together == run_alone(case)
    assert len(set(map(repr, together))) > 100
    assert events["steps"] < 129 * 4, "they were computed together"


#: What does not change which tokens are drawn, or is tested where there is text.
NOT_DRAWN = {
    *("detokenize", "skip_special_tokens", "spaces_between_special_tokens", "output_kind"),
    *("include_stop_str_in_output", "stop", "bad_words", "truncate_prompt_tokens"),
    *("stream_interval", "structured_outputs", "reasoning_limits", "allowed_logprobs"),
    *("logits_processors", "extra_args", "logprob_token_ids", "temperature", "max_tokens"),
    "flat_logprobs",  # the same numbers in another shape
}


def test_the_fuzzer_knows_every_sampling_parameter() -> None:
    """One that is added later must be drawn, too."""
    defaults = SamplingParams()
    seen: Counter[str] = Counter()
    for seed in range(60):
        for ask in draw(seed).asks:
            for name in names_of(ask.params):
                seen[name] += getattr(ask.params, name) != getattr(defaults, name)
    drawn = {name for name, count in seen.items() if count}
    assert drawn | NOT_DRAWN >= set(names_of(defaults))


def names_of(params: Any) -> list[str]:
    if isinstance(params, msgspec.Struct):
        return [field.name for field in msgspec.structs.fields(params)]
    return [field.name for field in fields(params)]
