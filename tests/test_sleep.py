"""`LLM.sleep` and `wake_up`, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from galley import LLM, SamplingParams
from galley.errors import InvalidRequest

MIB = 2**20
PROMPTS = ["Once upon a time", "The capital of France is", "The history of the world " * 100]
PARAMS = SamplingParams(max_tokens=12, temperature=0, logprobs=1)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_model_len=1024, max_num_seqs=8, kv_cache_memory_bytes="256m") as made:
        yield made


def pss() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return next(int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:")) * 1024


def answers(llm: LLM) -> list[object]:
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs]


def awake(llm: LLM) -> float:
    return next(
        m.value
        for m in llm.get_metrics()
        if m.name == "vllm:engine_sleep_state" and m.labels["sleep_state"] == "awake"
    )


@pytest.mark.parametrize(("level", "least"), [(1, 8), (2, 90)])
def test_it_answers_alike_after_waking_up(llm: LLM, level: int, least: int) -> None:
    before, full = answers(llm), pss()
    llm.sleep(level)
    assert full - pss() > least * MIB
    assert llm._core.scheduler.kv.pool.num_untouched == llm._core.executor.num_blocks - 1
    assert awake(llm) == 0
    with pytest.raises(InvalidRequest, match="asleep"):
        llm.generate("Hello", use_tqdm=False)
    assert llm.wake_up(["weights"]) is False
    assert llm.wake_up(["kv_cache"]) is True
    assert awake(llm) == 1
    assert answers(llm) == before


def test_what_was_enqueued(llm: LLM) -> None:
    for mode, expected in (("keep", "length"), ("wait", "length"), ("abort", "abort")):
        llm.enqueue(PROMPTS[0], PARAMS, use_tqdm=False)
        llm.sleep(mode=mode)
        llm.wake_up()
        [output] = llm.wait_for_completion(use_tqdm=False)
        assert output.outputs[0].finish_reason == expected
    llm.sleep(level=0)
    llm.enqueue(PROMPTS[0], PARAMS, use_tqdm=False)
    assert llm.wake_up(["scheduling"])
    assert llm.wait_for_completion(use_tqdm=False)[0].outputs[0].finish_reason == "length"


def test_what_there_is_not(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="level"):
        llm.sleep(level=3)
    with pytest.raises(InvalidRequest, match="mode"):
        llm.sleep(mode="later")
    with pytest.raises(InvalidRequest, match="tags"):
        llm.wake_up(["brain"])
    with pytest.raises(InvalidRequest, match="pause"):
        llm.release_kv_cache_memory()
    assert answers(llm)
