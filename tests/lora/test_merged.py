"""Answers with an adapter equal those of the model with the adapter merged into its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galley import LLM, LoRARequest, SamplingParams
from tests.lora.checkpoints import (
    LINEAR,
    linear_shapes,
    llama,
    phi3,
    random_adapter,
    random_model,
    save_adapter,
    save_base,
    save_merged,
    uniform,
)

PARAMS = SamplingParams(temperature=0, max_tokens=10, logprobs=0, detokenize=False, ignore_eos=True)
PROMPTS: list[Any] = [
    {"prompt_token_ids": [(7 * i + j) % 120 + 3 for i in range(n)]}
    for j, n in enumerate((40, 5, 1))
]


def open_model(path: Path, **flags: Any) -> LLM:
    options = {"max_num_batched_tokens": 32, "max_num_seqs": 8, "kv_cache_memory_bytes": 32 << 20}
    flags = {"dtype": "float32", "skip_tokenizer_init": True, **options, **flags}
    return LLM(str(path), **flags)


def answers(
    llm: LLM, prompts: list[Any] = PROMPTS, **options: Any
) -> list[tuple[list[int], list[float]]]:
    outputs = llm.generate(prompts, PARAMS, use_tqdm=False, **options)
    return [
        (o.token_ids, [next(iter(d.values())).logprob for d in o.logprobs or ()])
        for output in outputs
        for o in output.outputs
    ]


def by_kind(module: str) -> int:
    """Ranks of the patterns below."""
    return 3 if re.search(r"layers\.0\..*q_proj$", module) else 12 if "down" in module else 8


def alpha_of(module: str) -> float:
    return 5.0 if module.endswith("v_proj") else 16.0


PATTERNS = {
    "rank_pattern": {r"layers\.0\..*q_proj": 3, "down_proj": 12},
    "alpha_pattern": {"v_proj": 5},
}
CASES: dict[str, tuple[Callable[[], Any], str, Callable[[str], int], dict[str, Any], Any]] = {
    "llama": (llama, LINEAR, uniform(8), {}, lambda m: 2.0),
    "llama, q and up": (
        llama,
        "q_proj|up_proj",
        uniform(5),
        {"target_modules": "all-linear"},
        lambda m: 16 / 5,
    ),
    "llama, patterns, rsLoRA": (
        llama,
        LINEAR,
        by_kind,
        {**PATTERNS, "use_rslora": True, "target_modules": r".*_proj"},
        lambda m: alpha_of(m) / math.sqrt(by_kind(m)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_equals_the_merged_model(name: str, tmp_path: Path) -> None:
    make, pattern, rank_of, config, scale_of = CASES[name]
    base = save_base(make, tmp_path / "base")
    tensors = random_adapter(linear_shapes(random_model(make), pattern), rank_of, seed=1)
    rank = 8 if rank_of is by_kind else rank_of("")
    path = save_adapter(tmp_path / "adapter", tensors, rank, **config)
    merged = save_merged(make, tensors, scale_of, tmp_path / "merged")
    wanted = answers(open_model(merged))
    llm = open_model(base, enable_lora=True)
    plain = answers(llm)
    given = answers(llm, lora_request=LoRARequest("a", 1, str(path)))
    assert answers(llm) == plain  # what the adapter's requests left in the cache is not found
    for (ids, logprobs), (wanted_ids, wanted_logprobs) in zip(given, wanted, strict=True):
        assert ids == wanted_ids
        np.testing.assert_allclose(logprobs, wanted_logprobs, atol=1e-4)
    assert given != plain
    if name == "llama":
        assert answers(open_model(base)) == plain  # a server with adapters answers as one without


def test_the_native_kernels_equal_their_definition(tmp_path: Path) -> None:
    base = save_base(phi3, tmp_path / "base")
    shapes = linear_shapes(random_model(phi3), "qkv_proj|gate_up_proj|o_proj")
    path = save_adapter(tmp_path / "a", random_adapter(shapes, uniform(8), seed=2))
    request = LoRARequest("a", 1, str(path))
    native, reference = (
        answers(
            open_model(base, enable_lora=True, backend=backend), lora_request=[request, None, None]
        )
        for backend in ("cpu", "reference")
    )
    for (ids, logprobs), (wanted_ids, wanted) in zip(native, reference, strict=True):
        assert ids == wanted_ids
        np.testing.assert_allclose(logprobs, wanted, atol=1e-4)
