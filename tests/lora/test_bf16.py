"""Adapters in bfloat16, whose products AMX tiles compute where the CPU has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from galley import LLM, LoRARequest, SamplingParams, TokensPrompt
from tests.lora.checkpoints import (
    LINEAR,
    linear_shapes,
    qwen2,
    random_adapter,
    random_model,
    save_adapter,
    save_base,
    uniform,
)
from tests.lora.test_merged import open_model

#: Of adapters of all modules: one number of a block of 32, one block, more than one.
RANKS = (1, 16, 40)
PARAMS = SamplingParams(temperature=0, max_tokens=6, logprobs=0, detokenize=False, ignore_eos=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with biases."""
    return save_base(qwen2, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def requests(base: Path) -> list[LoRARequest | None]:
    """None, adapters of `RANKS`, and one of which some modules have gains (DoRA)."""
    shapes = linear_shapes(random_model(qwen2), LINEAR)
    made: list[LoRARequest | None] = [None]
    for rank in RANKS:
        path = save_adapter(base / f"r{rank}", random_adapter(shapes, uniform(rank), rank), rank)
        made.append(LoRARequest(path.name, rank, str(path)))
    some = {name: shape for name, shape in shapes.items() if "up" not in name and "q_" not in name}
    tensors = random_adapter(some, uniform(8), 9)
    for name, (n, _) in some.items():
        magnitude = np.random.default_rng(n).uniform(0.5, 2, n).astype(np.float32)
        tensors[f"base_model.model.{name}.lora_magnitude_vector"] = magnitude
    path = save_adapter(base / "dora", tensors, use_dora=True)
    return [*made, LoRARequest("dora", 99, str(path))]


def open_bf16(base: Path, **flags: object) -> LLM:
    options = {"max_loras": 4, "max_lora_rank": 64, "max_num_batched_tokens": 64, **flags}
    return open_model(base, dtype="bfloat16", enable_lora=True, **options)


def said(
    llm: LLM, lengths: list[int], loras: list[LoRARequest | None]
) -> list[tuple[list[int], list[float]]]:
    prompts: list[TokensPrompt] = [
        {"prompt_token_ids": [(7 * i + n) % 120 + 3 for i in range(n)]} for n in lengths
    ]
    return [
        (o.token_ids, [next(iter(d.values())).logprob for d in o.logprobs or ()])
        for output in llm.generate(prompts, PARAMS, use_tqdm=False, lora_request=loras)
        for o in output.outputs
    ]


def test_alone_among_others_and_op_by_op(base: Path, requests: list[LoRARequest | None]) -> None:
    llm = open_bf16(base)
    cases = [(n, request) for n in (1, 37) for request in requests]
    alone = [said(llm, [n], [request])[0] for n, request in cases]
    assert len({str(answer) for answer in alone}) == len(cases)
    for order in (cases, cases[::-1]):
        mixed = said(llm, [n for n, _ in order], [request for _, request in order])
        assert dict(zip(map(str, order), mixed, strict=True)) == dict(
            zip(map(str, cases), alone, strict=True)
        )
    eager = open_bf16(base, enforce_eager=True)
    assert said(eager, [n for n, _ in cases], [request for _, request in cases]) == alone


def test_about_as_with_adapters_as_float32(base: Path, requests: list[LoRARequest | None]) -> None:
    """`--lora-dtype float16` keeps them as float32, which no tiles multiply."""
    first = [
        [logprobs[0] for _, logprobs in said(llm, [37] * len(requests), requests)]
        for llm in (open_bf16(base), open_bf16(base, lora_dtype="float16"))
    ]
    assert np.ptp(first[0]) > 0.03
    np.testing.assert_allclose(*first, atol=0.005)
