"""Many adapters on one quantised model: each answer is the same alone and among others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from galley import LLM, LoRARequest, SamplingParams
from galley.config import LoadConfig, ModelConfig
from galley.errors import ConfigError, InvalidRequest, Unsupported
from galley.layers.shapes import ShapeSource
from galley.loader import read_model_info, resolve_source
from galley.models.decoder import Stage
from galley.models.registry import model_spec
from tests.lora.checkpoints import random_adapter, save_adapter, uniform
from tests.small_model import small_model

PROMPT = "The lens bends the light of the sun, and the colours"
PARAMS = SamplingParams(temperature=0.8, seed=3, max_tokens=12, logprobs=1, ignore_eos=True)


def model_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of the layers' linear modules."""
    source = ShapeSource()
    info = read_model_info(resolve_source(ModelConfig(str(path)), LoadConfig()))
    model_spec(info).build(source, Stage(1))
    return {
        part.name: part.shape
        for tensors in source.sites.all
        for part in tensors.parts
        if tensors.site.copy < 0  # neither embedding nor head
    }


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest]:
    """Sixteen adapters of ranks 1 to 16."""
    folder, shapes = tmp_path_factory.mktemp("adapters"), model_shapes(small_model())
    made = []
    for i in range(16):
        rank = i + 1
        tensors = random_adapter(shapes, uniform(rank), seed=i, size=0.05)
        path = save_adapter(folder / f"a{i}", tensors, rank, lora_alpha=2 * rank)
        made.append(LoRARequest(f"a{i}", i + 1, str(path)))
    return made


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(
        str(small_model()),
        enable_lora=True,
        max_loras=16,
        max_num_seqs=32,
        max_model_len=512,
        kv_cache_memory_bytes=64 << 20,
        max_num_batched_tokens=64,
    )


def said(llm: LLM, prompts: list[str], loras: Any, params: SamplingParams = PARAMS) -> list[Any]:
    outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=loras)
    return [[(o.token_ids, o.logprobs) for o in output.outputs] for output in outputs]


def test_alone_and_among_fifteen_others(llm: LLM, requests: list[LoRARequest]) -> None:
    alone = [said(llm, [PROMPT], request)[0] for request in requests]
    plain = said(llm, [PROMPT], None)[0]
    assert len({str(answer) for answer in (*alone, plain)}) == 17
    mixed = said(llm, [PROMPT] * 33, [*requests, None, *requests[::-1]])
    assert mixed == [*alone, plain, *alone[::-1]]


def test_chunks_and_the_prefix_cache_change_nothing(llm: LLM, requests: list[LoRARequest]) -> None:
    long = PROMPT * 20  # several chunks
    llm.reset_prefix_cache()
    first = said(llm, [long], requests[3])
    again = llm.generate(long, PARAMS, use_tqdm=False, lora_request=requests[3])[0]
    assert again.num_cached_tokens
    assert [[(o.token_ids, o.logprobs) for o in again.outputs]] == first
    other = llm.generate(long, PARAMS, use_tqdm=False, lora_request=requests[4])[0]
    assert other.num_cached_tokens == 0
    assert other.lora_request == requests[4]


def test_several_answers_and_masks(llm: LLM, requests: list[LoRARequest]) -> None:
    several = SamplingParams(n=3, seed=5, max_tokens=8, temperature=1.0, logprobs=0)
    [answer] = said(llm, [PROMPT], requests[7], several)
    assert said(llm, [PROMPT] * 2, [requests[7], requests[1]], several)[0] == answer
    biased = SamplingParams(max_tokens=4, temperature=0, logit_bias={77: 100.0})
    assert said(llm, [PROMPT], requests[7], biased)[0][0][0] == [77] * 4


def test_a_reload_answers_with_the_new_weights(
    llm: LLM, requests: list[LoRARequest], tmp_path: Path
) -> None:
    shapes = model_shapes(small_model())
    path = tmp_path / "a"
    save_adapter(path, random_adapter(shapes, uniform(4), 90, 0.05), 4)
    request = LoRARequest("reloaded", 50, str(path))
    before = said(llm, [PROMPT], request)
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_config.json").unlink()
    path.rmdir()
    save_adapter(path, random_adapter(shapes, uniform(4), 91, 0.05), 4)
    assert said(llm, [PROMPT], request) == before
    inplace = LoRARequest("reloaded", 50, str(path), load_inplace=True)
    after = said(llm, [PROMPT], inplace)
    assert after != before
    assert said(llm, [PROMPT], request) == after
    assert said(llm, [PROMPT], requests[0]) == said(llm, [PROMPT], requests[0])


def test_more_adapters_than_may_run_wait(requests: list[LoRARequest]) -> None:
    llm = LLM(
        str(small_model()),
        enable_lora=True,
        max_loras=2,
        max_cpu_loras=3,
        max_num_seqs=16,
        max_model_len=256,
        kv_cache_memory_bytes=32 << 20,
        enforce_eager=True,
    )
    alone = [said(llm, [PROMPT], request)[0] for request in requests[:6]]
    ids = llm.enqueue([PROMPT] * 7, PARAMS, lora_request=[*requests[:6], None])
    assert len(ids) == 7
    llm._client.step()
    stats = llm._core.stats()
    assert (stats.num_running, stats.waiting_by_reason) == (3, {"deferred": 4})
    outputs = llm.wait_for_completion(use_tqdm=False)
    got = [[(o.token_ids, o.logprobs) for o in output.outputs] for output in outputs]
    assert got[:6] == alone
    llm._core.check_integrity()


def test_memory_that_adapters_would_take_is_counted() -> None:
    """A start that leaves nothing for the KV cache says how much each part takes."""
    flags: dict[str, Any] = {"enable_lora": True, "max_model_len": 64, "max_lora_rank": 512}
    with pytest.raises(ConfigError, match=r"no memory is left .* adapters \d+\.\d+ GiB"):
        LLM(str(small_model()), max_loras=1_000_000, **flags)
    with pytest.raises(ConfigError, match="max_cpu_loras 2 is less than max_loras 3"):
        LLM(str(small_model()), max_loras=3, max_cpu_loras=2, **flags)


def test_what_cannot_be_served_is_refused(llm: LLM, requests: list[LoRARequest]) -> None:
    with pytest.raises(InvalidRequest, match="no such folder or file"):
        said(llm, [PROMPT], LoRARequest("none", 60, "/nonexistent"))
    with pytest.raises(InvalidRequest, match="2 prompts but 1 lora_requests"):
        said(llm, [PROMPT] * 2, requests[:1])
    with pytest.raises(InvalidRequest, match="lora_int_id"):
        LoRARequest("a", 0, "x")
    plain = LLM(str(small_model()), max_model_len=64, kv_cache_memory_bytes=8 << 20)
    with pytest.raises(Unsupported, match="enable_lora"):
        said(plain, [PROMPT], requests[0])
