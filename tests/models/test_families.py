"""Every family: equal to transformers, and the same answer whatever happens to a request.

A family is one line of `families.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from galley import LLM, SamplingParams
from galley.config.architectures import split_architecture
from galley.kernels.backend import Backend
from galley.kernels.cpu import CpuBackend
from galley.kernels.reference import ReferenceBackend
from galley.kv.capacity import most_held
from galley.kv.groups import make_policies
from galley.models.registry import ARCHITECTURES
from tests.equality.workload import answer
from tests.models.checkpoints import Case, StateDict, hf_logits, in_bfloat16, make
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.encoders import ENCODERS
from tests.models.families import FAMILIES, VARIANTS

#: Of the largest logit.
TOLERANCE = 1e-4
ROWS = 32
#: Tokens of every third row, which is compared with transformers, and of the others.
NEW, FEW = 64, 24
IDS = np.random.default_rng(1).integers(0, 131, 75)


@dataclass
class Family:
    """A tiny checkpoint, and what several tests ask of it."""

    case: Case
    folder: Path

    @cached_property
    def model(self) -> torch.nn.Module:
        return make(self.case)

    @cached_property
    def checkpoint(self) -> StateDict:
        return StateDict(self.model)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Lengths around a block's; a quarter of them begins like another one."""
        rng = np.random.default_rng(2)
        prompts = [rng.integers(3, 131, n).tolist() for n in rng.integers(1, 60, ROWS)]
        shared = prompts[0] = rng.integers(3, 131, 40).tolist()
        return [shared[:33] + p[:9] if i % 4 == 3 else p for i, p in enumerate(prompts)]

    @cached_property
    def llm(self) -> LLM:
        self.model.save_pretrained(self.folder)
        flags: dict[str, Any] = {
            "dtype": "float32",
            "max_model_len": 128,
            "max_num_batched_tokens": 48,
            "max_num_seqs": ROWS,
            "num_threads": 1,
            "mamba_block_size": 16,
            # Too few for all rows at their full length.
            "num_gpu_blocks_override": self.blocks,
        }
        return LLM(str(self.folder), skip_tokenizer_init=True, **flags)

    @cached_property
    def blocks(self) -> int:
        """A third of what all rows hold at their end."""
        backend = CpuBackend("f32", threads=1)
        groups = backend.build(load(self.checkpoint, backend), LIMITS).kv_layout(16, 16).groups
        return ROWS * most_held(make_policies(groups, max_chunk=1), 60 + NEW) // 3

    @cached_property
    def answers(self) -> list[Any]:
        """Of all prompts together, in an engine that preempts."""
        before = self.llm._core.scheduler.counters.num_preemptions
        outputs = self.ask(self.prompts, [FEW if i % 3 else NEW for i in range(ROWS)])
        counters = self.llm._core.scheduler.counters
        assert counters.num_preemptions > before
        assert counters.prefix_hits > 0
        return outputs

    def ask(self, prompts: list[list[int]], new: Sequence[int] = (NEW,)) -> list[Any]:
        params = [
            SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, logprobs=2) for n in new
        ]
        return self.llm.generate(prompts, params, use_tqdm=False)

    def logits(self, backend: Backend, checkpoint: StateDict) -> np.ndarray:
        return solo_logits(backend.build(load(checkpoint, backend), LIMITS), IDS, [40, 1, 34])


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Family:
    return Family(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


def test_every_architecture_has_a_line() -> None:
    known = {case.architecture for case in (*FAMILIES.values(), *VARIANTS.values())}
    known |= {split_architecture(case.architecture)[0] for case in ENCODERS.values()}
    known.add("CLIPTextModel")  # in test_pooling_heads
    assert known == set(ARCHITECTURES)


def test_float32_logits_equal_transformers(family: Family) -> None:
    want = hf_logits(family.model, IDS)
    for backend in (ReferenceBackend(), CpuBackend("f32", threads=1)):
        got = family.logits(backend, family.checkpoint)
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.parametrize("name", list(VARIANTS))
def test_float32_logits_of_variants_equal_transformers(name: str, tmp_path: Path) -> None:
    variant = Family(VARIANTS[name], tmp_path)
    want = hf_logits(variant.model, IDS)
    got = variant.logits(CpuBackend("f32", threads=1), variant.checkpoint)
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def test_bfloat16_is_as_close_as_transformers(family: Family) -> None:
    """By the divergence from float32 on the same rounded weights."""
    rounded = in_bfloat16(family.model)
    theirs = hf_logits(rounded, IDS)
    exact = hf_logits(rounded.float(), IDS)
    ours = family.logits(CpuBackend("bf16", threads=1), StateDict(rounded))
    # Rounding chooses among experts of nearly equal scores: by chance, for both.
    factor = 3 if family.case.has_experts else 1.2
    assert divergence(exact, ours) <= factor * divergence(exact, theirs) + 1e-6


def test_greedy_tokens_equal_transformers(family: Family) -> None:
    """Over 64 steps in chunks, with preemption and prefix hits: each token of a third of the rows
    is the most likely one after those before it."""
    prompts, answers = family.prompts[::3], family.answers[::3]
    sequences = [
        prompt + list(output.outputs[0].token_ids)
        for prompt, output in zip(prompts, answers, strict=True)
    ]
    longest = max(map(len, sequences))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
    with torch.inference_mode():
        logits = family.model(padded).logits.float()
    for prompt, ids, rows in zip(prompts, sequences, logits, strict=True):
        assert len(ids) == len(prompt) + NEW
        rows = rows[len(prompt) - 1 : len(ids) - 1]
        chosen = rows[torch.arange(NEW), torch.tensor(ids[len(prompt) :])]
        assert (rows.max(-1).values - chosen).max() <= TOLERANCE * rows.abs().max()


def test_alone_and_in_a_batch_the_same_bits(family: Family) -> None:
    for i, new in ((0, NEW), (7, FEW), (31, FEW)):
        assert family.llm.reset_prefix_cache()
        assert answer(family.ask([family.prompts[i]], [new])[0]) == answer(family.answers[i])


def test_the_rest_of_an_answer_after_a_replay(family: Family) -> None:
    """A new engine gets the prompt and the tokens so far, as it does after a kill."""
    for i, done in ((0, 20), (9, NEW - 1)):
        whole = family.answers[i].outputs[0]
        so_far = family.prompts[i] + list(whole.token_ids[:done])
        rest = family.ask([so_far], [NEW - done])[0].outputs[0]
        assert rest.token_ids == whole.token_ids[done:]
        assert rest.logprobs == whole.logprobs[done:]


def divergence(exact: np.ndarray, other: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the rows' distributions."""
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (exact, other))
    return float((p.exp() * (p - q)).sum(-1).mean())
