"""Every feature of a request together, with each kind of proposer: answers are the plain ones. A
proposer of the user's own runs as the built-in ones do (test_answers).

Checklist 45, 73, 113: prompts in chunks, hits, preemption, drafts and constraints share steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from galley import LLM, LoRARequest, SamplingParams
from galley.request import StructuredOutputsParams
from tests.equality.workload import answer, lose_engine
from tests.lora.checkpoints import random_adapter, save_adapter, uniform
from tests.lora.test_many import model_shapes
from tests.small_model import small_model
from tests.spec.test_heads_killed import eagle

TEXT = "The lens bends the light, and the light bends the lens. " * 3
FIXED = {"draft_length": "fixed", "num_speculative_tokens": 5}
SCHEMA = {
    "type": "object",
    "properties": {"a_rather_long_name": {"type": "boolean"}, "another": {"enum": ["one", "two"]}},
    "required": ["a_rather_long_name", "another"],
    "additionalProperties": False,
}


def constraint() -> StructuredOutputsParams:
    return StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)


#: What a request may ask for, and whether it has an adapter.
ASKED: list[tuple[dict[str, Any], bool]] = [
    ({"temperature": 0.0}, True),
    ({"temperature": 1.0, "logprobs": 2}, True),
    ({"temperature": 0.0, "structured_outputs": constraint()}, False),
    ({"temperature": 1.0, "structured_outputs": constraint(), "logprobs": 0}, False),
    ({"temperature": 0.0, "stop": [" light", "lens. The"], "min_tokens": 9}, False),
    ({"temperature": 0.5, "stop_token_ids": list(range(260, 500)), "min_tokens": 12}, False),
    ({"temperature": 0.3, "presence_penalty": 0.5, "frequency_penalty": 0.3}, False),
    ({"temperature": 0.7, "repetition_penalty": 1.1, "n": 3}, True),
    ({"temperature": 0.0, "bad_words": ["light"], "logit_bias": {28: -4.0}}, False),
    ({"temperature": 0.0, "prompt_logprobs": 1, "logprobs": 3}, False),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("combinations")
    save_adapter(
        folder / "adapter", random_adapter(model_shapes(small_model()), uniform(8), 1, 0.02)
    )
    eagle(folder / "eagle")
    return folder


def way(method: str, home: Path) -> dict[str, Any]:
    models = {
        "draft_model": str(small_model()),
        "eagle": str(home / "eagle"),
    }
    given = {"method": method, **FIXED}
    return {**given, "model": models[method]} if method in models else given


def engine(**flags: Any) -> LLM:
    return LLM(str(small_model()), enable_lora=True, max_model_len=192, max_num_seqs=16, **flags)


def enqueue(llm: LLM, home: Path, adapted: bool) -> None:
    """All requests; without adapters none of theirs."""
    adapter = LoRARequest("adapter", 1, str(home / "adapter"))
    for i, (asked, has_adapter) in enumerate(ASKED):
        params = SamplingParams(max_tokens=28, seed=i, **asked)
        text = TEXT[: 60 + 10 * i] + TEXT[:40]
        if adapted or not has_adapter:
            llm.enqueue([text], params, lora_request=adapter if has_adapter else None)


def answers(llm: LLM, home: Path, adapted: bool = True) -> list[Any]:
    enqueue(llm, home, adapted)
    return [answer(output) for output in llm.wait_for_completion(use_tqdm=False)]


@pytest.fixture(scope="module")
def plain(home: Path) -> tuple[list[Any], list[Any]]:
    """With requests that have adapters, and without them."""
    llm = engine(spec_method="none")
    return answers(llm, home), answers(llm, home, adapted=False)


@pytest.mark.parametrize("method", ["ngram", "suffix", "draft_model", "eagle"])
def test_answers_are_those_without_drafts(
    method: str, home: Path, plain: tuple[list[Any], list[Any]]
) -> None:
    llm = engine(
        speculative_config=way(method, home),
        num_gpu_blocks_override=15,
        max_num_batched_tokens=48,
        distributed_executor_backend="loopback",
    )
    assert answers(llm, home) == plain[0]
    assert answers(llm, home) == plain[0], "from the prefix cache"
    core = llm._core
    assert core.counters.num_preemptions > 0
    counts = core.scheduler.draft_counts
    assert counts.num_rejected > 0
    assert counts.num_accepted > 0
    core.check_integrity()

    enqueue(llm, home, adapted=False)
    lose_engine(llm, engine(speculative_config=way(method, home)))
    after = [answer(output) for output in llm.wait_for_completion(use_tqdm=False)]
    assert after == plain[1]
