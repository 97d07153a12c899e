"""Drafts for models with recurrent states: a rejected draft leaves no trace in a state.

Drafts come from an oracle that knows the answers and errs at random places, so that a state is
taken back to each place, across the borders of kept states and from the prefix cache.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galley import LLM, SamplingParams
from tests.equality.workload import answer
from tests.models.checkpoints import make
from tests.models.families import FAMILIES
from tests.runner.proposing import WIDTH, Guesser

VOCAB, LENGTH, COUNT = 131, 192, 6
#: One family for each kind of state.
NAMES = ["mamba", "falcon-h1", "lfm2", "qwen3-next", "rwkv7"]


class Oracle(Guesser):
    """Proposes parts of the answers that it knows, with errors."""

    answers: list[list[int]] = []

    def __init__(self, settings: Any, num_slots: int) -> None:
        self._random = random.Random(2)

    def guess(self, known: list[int], num_prompt: int) -> list[int]:
        rest = next((a[len(known) :] for a in self.answers if a[: len(known)] == known), [])
        drafts = rest[: self._random.randint(0, WIDTH)]
        if drafts and self._random.random() < 0.7:
            drafts[self._random.randrange(len(drafts))] = self._random.randrange(VOCAB)
        return drafts


ORACLE = {
    "method": "custom_class",
    "model": f"{__name__}.Oracle",
    "draft_length": "fixed",
    "num_speculative_tokens": WIDTH,
}


def requests() -> tuple[list[dict[str, list[int]]], list[SamplingParams]]:
    """Prompts that begin alike, of which some are continued with the same tokens."""
    rng = np.random.default_rng(4)
    head = rng.integers(3, VOCAB, 50).tolist()
    prompts = [head[: 50 * (i % 2)] + rng.integers(3, VOCAB, 3 + 5 * i).tolist() for i in range(6)]
    params = [
        SamplingParams(max_tokens=48, ignore_eos=True, temperature=i % 2, seed=i, logprobs=1)
        for i in range(COUNT)
    ]
    return [{"prompt_token_ids": prompt} for prompt in prompts], params


def run(llm: LLM) -> list[Any]:
    return [answer(output) for output in llm.generate(*requests(), use_tqdm=False)]


def open_llm(folder: Path, **flags: Any) -> LLM:
    flags = {"mamba_block_size": 16, "kv_cache_memory_bytes": "64m", **flags}
    return LLM(str(folder), skip_tokenizer_init=True, max_model_len=LENGTH, max_num_seqs=8, **flags)


def drafted(llm: LLM) -> tuple[int, int]:
    counts = llm._core.scheduler.draft_counts
    return counts.num_accepted, counts.num_rejected


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make(FAMILIES[request.param]).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def plain(folder: Path) -> list[Any]:
    with open_llm(folder, enable_prefix_caching=False) as llm:
        answers = run(llm)
    Oracle.answers = [[*prompt, *outputs[0][1]] for prompt, _, outputs in answers]
    return answers


def test_answers_are_those_without_drafts(folder: Path, plain: list[Any]) -> None:
    with open_llm(folder, speculative_config=ORACLE, max_num_batched_tokens=64) as llm:
        assert run(llm) == plain
        assert run(llm) == plain, "from kept states"
        assert min(drafted(llm)) > 50
        assert llm._core.counters.prefix_hits > 0
        llm._core.check_integrity()
        few = 1 + llm._core.scheduler.kv.most_held(LENGTH)
        has_attention = any(group.kind == "full" for group in llm._core.executor.groups)
    flags = {"max_num_batched_tokens": 64, "num_gpu_blocks_override": few}
    with open_llm(folder, speculative_config=ORACLE, **flags) as llm:
        assert run(llm) == plain
        assert llm._core.counters.num_preemptions > 0 or not has_attention
        assert min(drafted(llm)) > 0


@pytest.mark.parametrize("folder", ["falcon-h1"], indirect=True)
def test_the_reference_backend_takes_drafts_back_too(folder: Path) -> None:
    """Its logits depend on the batch in the last bits, so tokens alone are compared."""
    with open_llm(folder, backend="reference", enable_prefix_caching=False) as llm:
        answers = run(llm)
    Oracle.answers = [[*prompt, *outputs[0][1]] for prompt, _, outputs in answers]
    with open_llm(folder, backend="reference", speculative_config=ORACLE) as llm:
        drafted_answers = run(llm)
        assert min(drafted(llm)) > 50
    for (_, _, [one]), (_, _, [other]) in zip(answers, drafted_answers, strict=True):
        assert one[1] == other[1]
