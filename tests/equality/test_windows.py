"""Models with sliding windows: blocks are freed as computed on paper, and answers stay the same.

Two tiny random models, one with windows alone and one with layers window, full, window, window,
full. That their logits are right is shown in tests/models; here all is compared with `==` with
each request alone and nothing cached.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from galley import LLM, SamplingParams
from galley.request import Request
from tests.equality.workload import answer, watch
from tests.models.checkpoints import Case, make

BLOCK, WINDOW, LENGTH = 16, 40, 256
LAYERS = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
LAYERS += ["full_attention"]
CASES = {
    "window": Case("Mistral", {"sliding_window": WINDOW, "num_hidden_layers": 2}),
    "interleaved": Case(
        "Qwen3",
        {
            "head_dim": 16,
            "num_hidden_layers": 5,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": LAYERS,
        },
    ),
}
#: Layers of each KV group: two full layers are the fewest, so three windows are two groups.
GROUPS = {"window": [("window", 2)], "interleaved": [("window", 2), ("window", 1), ("full", 2)]}


@pytest.fixture(scope="module", params=list(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp(name)
    make(CASES[name]).save_pretrained(path)
    return str(path)


def open_llm(folder: str, **flags: Any) -> LLM:
    flags = {
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
        "num_gpu_blocks_override": 200,
    } | flags
    return LLM(folder, skip_tokenizer_init=True, max_model_len=LENGTH, **flags)


def requests() -> tuple[list[dict[str, list[int]]], list[SamplingParams]]:
    """Eight prompts much longer than the window, with four beginnings, and four short ones."""
    rng = np.random.default_rng(3)
    heads = [*rng.integers(3, 131, (4, 100)).tolist() * 2, [], [], [], []]
    prompts = [head + rng.integers(3, 131, 5 + 3 * i).tolist() for i, head in enumerate(heads)]
    params = [
        SamplingParams(max_tokens=60, ignore_eos=True, temperature=i % 2, seed=i, logprobs=1)
        for i in range(12)
    ]
    return [{"prompt_token_ids": prompt} for prompt in prompts], params


def run(llm: LLM) -> list[Any]:
    prompts, params = requests()
    return [answer(output) for output in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def alone(folder: str) -> list[Any]:
    with open_llm(folder, enable_prefix_caching=False) as llm:
        return [
            answer(llm.generate([prompt], [params], use_tqdm=False)[0])
            for prompt, params in zip(*requests(), strict=True)
        ]


def blocks_of(kind: str, computed: int, new: int) -> int:
    """Blocks that one sequence holds in a step, on paper."""
    first_read = max(0, computed - WINDOW + 1) if kind == "window" else 0
    return (computed + new - 1) // BLOCK - first_read // BLOCK + 1


def test_blocks_and_bytes_are_those_computed_on_paper(name: str, folder: str) -> None:
    with open_llm(folder, dtype="bfloat16") as llm:
        core = llm._core
        held = [(group.kind, group.num_layers) for group in core.executor.groups]
        assert held == GROUPS[name]
        # A block: two layers, K and V, two heads of 16, 16 tokens, bfloat16.
        [memory] = core.executor.rpc("memory")
        assert memory["kv_cache"] == 200 * 2 * 2 * 2 * 16 * BLOCK * 2
        submit, most = core.executor.submit, 0

        def checked(plan: Any) -> Any:
            nonlocal most
            computed = int(core.scheduler.table.num_computed[plan.slots[0]])
            used = core.scheduler.kv.pool.num_used
            assert used == sum(blocks_of(kind, computed, int(plan.num_new[0])) for kind, _ in held)
            core.check_integrity()
            most = max(most, used)
            return submit(plan)

        core.executor.submit = checked
        prompt = {"prompt_token_ids": [i % 100 + 3 for i in range(190)]}
        params = SamplingParams(max_tokens=66, temperature=0, ignore_eos=True)
        llm.generate([prompt], params, use_tqdm=False)
        assert most <= core.scheduler.kv.most_held(LENGTH)
        assert most == {"window": 7, "interleaved": 7 + 7 + 12}[name]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"max_num_batched_tokens": 16},
        {"max_num_batched_tokens": 33, "distributed_executor_backend": "loopback"},
        {"block_size": 64},
        {"enforce_eager": True, "num_threads": 1},
    ],
    ids=str,
)
def test_company_and_chunks(folder: str, alone: list[Any], flags: dict[str, Any]) -> None:
    with open_llm(folder, **flags) as llm:
        events = watch(llm)
        assert run(llm) == alone
        assert events.most_rows > 4
        assert llm._core.scheduler.kv.pool.num_used == 0


def test_preemption(name: str, folder: str, alone: list[Any]) -> None:
    blocks = {"window": 10, "interleaved": 40}[name]
    with open_llm(folder, num_gpu_blocks_override=blocks) as llm:
        assert run(llm) == alone
        assert llm._core.scheduler.counters.num_preemptions > 0
        assert llm._core.scheduler.kv.pool.num_evicted > 0


def test_hits_are_what_all_groups_hold(name: str, folder: str, alone: list[Any]) -> None:
    with open_llm(folder) as llm:
        prompts, params = requests()
        for prompt, one, wanted in zip(prompts[:5], params[:5], alone[:5], strict=True):
            output = llm.generate([prompt], [one], use_tqdm=False)[0]
            assert answer(output) == wanted
        # The fifth begins as the first does, for 100 tokens: 6 blocks.
        assert output.num_cached_tokens == 96
        kv = llm._core.scheduler.kv
        # Without one block that a window reads there, the hit is as long as all groups allow.
        ids = np.array(prompts[0]["prompt_token_ids"], np.int32)
        chain = kv.new_chain(None, None)
        hit = kv.find_hit(chain, ids[:101])
        [gone] = [blocks[-1] for blocks in hit.blocks[:1]]
        kv.pool.index.pop(kv.pool.keys[gone])
        kv.pool.keys[gone] = None
        assert kv.find_hit(chain, ids[:101]).num_tokens == 80


def test_replay(folder: str, alone: list[Any]) -> None:
    """A request that arrives with a part of its answer goes on as if nothing had happened."""
    prompts, params = requests()
    with open_llm(folder) as llm:
        core, got = llm._core, {}
        for i, kept in enumerate((0, 1, 30, 50)):
            ids, output = prompts[i]["prompt_token_ids"], alone[i][2][0][1]
            core.add([replayed(i, ids, output[:kept], params[i])])
        while core.has_work:
            for _, out in core.step():
                handles = np.frombuffer(out.handles, np.int64).tolist()
                tokens = np.frombuffer(out.token_ids, np.int32).tolist()
                for handle, token in zip(handles, tokens, strict=True):
                    got.setdefault(handle, []).append(token)
        for i, kept in enumerate((0, 1, 30, 50)):
            assert got[i] == alone[i][2][0][1][kept:]


def replayed(handle: int, ids: list[int], output: list[int], params: SamplingParams) -> Request:
    return Request(
        handle=handle,
        request_id=str(handle),
        prompt_token_ids=np.array(ids, np.int32).tobytes(),
        output_token_ids=np.array(output, np.int32).tobytes(),
        params=params,
        max_total_tokens=len(ids) + (params.max_tokens or 0),
    )
