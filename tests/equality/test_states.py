"""Models with recurrent states: prefix hits at kept states, preemption, and equal answers.

All is compared with `==` with each request alone and nothing cached. That the logits are right is
shown in tests/models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from galley import LLM, SamplingParams
from galley.request import Request
from tests.equality.test_windows import replayed
from tests.equality.workload import answer
from tests.models.checkpoints import make
from tests.models.families import FAMILIES

NAMES = ["mamba2", "falcon-h1"]
LENGTH, INTERVAL = 256, 32


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp(request.param)
    make(FAMILIES[request.param]).save_pretrained(path)
    return str(path)


def open_llm(folder: str, **flags: Any) -> LLM:
    flags = {
        "max_num_batched_tokens": 64,
        "max_num_seqs": 32,
        "kv_cache_memory_bytes": "64m",
    } | flags
    flags = {"mamba_block_size": INTERVAL} | flags
    return LLM(folder, skip_tokenizer_init=True, max_model_len=LENGTH, **flags)


def requests() -> tuple[list[dict[str, list[int]]], list[SamplingParams]]:
    """Prompts with four beginnings of 100 tokens, and short ones: 32 in all."""
    rng = np.random.default_rng(3)
    heads = [*rng.integers(3, 131, (4, 100)).tolist() * 4, *([[]] * 16)]
    prompts = [head + rng.integers(3, 131, 1 + i).tolist() for i, head in enumerate(heads)]
    params = [
        SamplingParams(max_tokens=40, ignore_eos=True, temperature=i % 2, seed=i, logprobs=1)
        for i in range(32)
    ]
    return [{"prompt_token_ids": prompt} for prompt in prompts], params


def tokens_of(core: Any, request: Request) -> list[int]:
    """The tokens of one request to an engine core."""
    core.add([request])
    tokens: list[int] = []
    while core.has_work:
        for _, out in core.step():
            tokens += np.frombuffer(out.token_ids, np.int32).tolist()
    return tokens


def run(llm: LLM) -> list[Any]:
    prompts, params = requests()
    return [answer(output) for output in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def alone(folder: str) -> list[Any]:
    """Each request by itself, its prompt in one chunk, no state kept."""
    prompts, params = requests()
    flags = {"enable_prefix_caching": False, "max_num_batched_tokens": LENGTH}
    with open_llm(folder, **flags) as llm:
        return [
            answer(llm.generate([prompt], each, use_tqdm=False)[0])
            for prompt, each in zip(prompts, params, strict=True)
        ]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"max_num_batched_tokens": 33, "distributed_executor_backend": "loopback"},
        {"enforce_eager": True, "num_threads": 1, "mamba_block_size": 16},
    ],
    ids=str,
)
def test_company_chunks_and_hits(folder: str, alone: list[Any], flags: dict[str, Any]) -> None:
    with open_llm(folder, **flags) as llm:
        core = llm._core
        interval = flags.get("mamba_block_size", INTERVAL)
        assert run(llm) == alone
        before = core.counters.prefix_hits
        assert run(llm) == alone
        # Each of the prompts of over 100 tokens finds a state at the last multiple below.
        assert core.counters.prefix_hits - before >= 16 * (100 // interval * interval)
        core.check_integrity()
        assert core.scheduler.kv.pool.num_used == 0


def test_preemption(folder: str, alone: list[Any]) -> None:
    with open_llm(folder) as llm:
        blocks = llm._core.scheduler.kv.most_held(LENGTH)
    with open_llm(folder, num_gpu_blocks_override=1 + 2 * blocks) as llm:
        assert run(llm) == alone
        core = llm._core
        assert core.counters.num_preemptions > 0
        assert core.scheduler.kv.pool.num_evicted > 0
        core.check_integrity()
        assert core.scheduler.kv.pool.num_used == 0


def test_replay(folder: str, alone: list[Any]) -> None:
    """A request that arrives with a part of its answer goes on as if nothing had happened."""
    prompts, params = requests()
    with open_llm(folder) as llm:
        for i, kept in ((0, 1), (1, 39), (20, 20)):
            ids, output = prompts[i]["prompt_token_ids"], alone[i][2][0][1]
            tokens = tokens_of(llm._core, replayed(i, ids, output[:kept], params[i]))
            assert tokens == output[kept:]


def test_without_prefix_caching_one_state_is_held(folder: str) -> None:
    with open_llm(folder, enable_prefix_caching=False) as llm:
        [state] = [g for g in llm._core.executor.groups if g.kind == "state"]
        assert (state.interval, state.table_width(LENGTH)) == (0, state.width)
