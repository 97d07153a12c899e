"""Adapters with drafts, structured output and pooling."""

from __future__ import annotations

import json

import pytest

from galley import LLM, LoRARequest, SamplingParams
from galley.request import StructuredOutputsParams
from tests.lora.checkpoints import random_adapter, save_adapter, uniform
from tests.lora.test_many import model_shapes, said
from tests.small_model import small_model

TEXT = "The lens bends the light. " * 6
PARAMS = SamplingParams(temperature=0.3, seed=3, max_tokens=24, logprobs=1, ignore_eos=True)


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest | None]:
    """Two adapters, and none."""
    folder, shapes = tmp_path_factory.mktemp("adapters"), model_shapes(small_model())
    paths = [
        save_adapter(folder / f"a{i}", random_adapter(shapes, uniform(8), i, 0.02))
        for i in range(2)
    ]
    return [*(LoRARequest(path.name, i + 1, str(path)) for i, path in enumerate(paths)), None]


def engine(**flags: object) -> LLM:
    return LLM(
        str(small_model()),
        enable_lora=True,
        max_loras=2,
        max_model_len=512,
        kv_cache_memory_bytes=32 << 20,
        **flags,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def plain() -> LLM:
    return engine(spec_method="none")


def test_drafts_change_no_answer(plain: LLM, requests: list[LoRARequest | None]) -> None:
    drafting = engine(speculative_config={"method": "ngram", "draft_length": "fixed"})
    alone = [said(plain, [TEXT], request, PARAMS)[0] for request in requests]
    assert len({str(answer) for answer in alone}) == 3
    assert said(drafting, [TEXT] * 3, requests, PARAMS) == alone
    counts = {m.name: getattr(m, "value", 0) for m in drafting.get_metrics()}
    assert counts["vllm:spec_decode_num_accepted_tokens"] > 0


def test_structured_answers_of_adapters(plain: LLM, requests: list[LoRARequest | None]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    params = SamplingParams(
        temperature=1.0,
        seed=4,
        max_tokens=48,
        structured_outputs=StructuredOutputsParams(
            json={**schema, "additionalProperties": False}, disable_any_whitespace=True
        ),
        logprobs=1,
    )
    alone = [said(plain, [TEXT], request, params)[0] for request in requests]
    assert said(plain, [TEXT] * 3, requests, params) == alone
    assert len({str(answer) for answer in alone}) == 3
    for output in plain.generate([TEXT] * 3, params, lora_request=requests):
        assert list(json.loads(output.outputs[0].text)) == ["a"]


def test_embeddings_of_adapters(requests: list[LoRARequest | None]) -> None:
    llm = engine(runner="pooling")
    alone = [
        llm.embed(TEXT, use_tqdm=False, lora_request=request)[0].outputs.embedding
        for request in requests
    ]
    assert len({str(vector) for vector in alone}) == 3
    mixed = llm.embed([TEXT] * 3, use_tqdm=False, lora_request=requests)
    assert [output.outputs.embedding for output in mixed] == alone
