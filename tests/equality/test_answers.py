"""One request, one answer: alone or among others, however it is computed.

Every test compares with `==` against the same requests run alone, and asserts that what it is
about took place. Batches, hits and preemption run twice: with the local executor, and through the
loopback executor that packs every plan and result into bytes and keeps tables of its own. The model
has two layers; one test runs the whole built-in model.
"""

import pytest

from galley import LLM, SamplingParams
from tests.equality.workload import MAX_TOKENS, answer, params, prompts, watch
from tests.small_model import small_model

COMMON = {"max_model_len": 512, "kv_cache_memory_bytes": 256 << 20}


@pytest.fixture(scope="module", params=["uni", "loopback"])
def executor(request):
    return request.param


def each_alone(model: str, count: int) -> list:
    with LLM(model, **COMMON, enable_prefix_caching=False) as llm:
        return [
            answer(llm.generate([p], s, use_tqdm=False)[0])
            for p, s in zip(prompts()[:count], params(count), strict=True)
        ]


@pytest.fixture(scope="module")
def alone():
    """The answers of 64 requests, each alone, nothing cached."""
    return each_alone(str(small_model()), 64)


def run(llm: LLM, order: list[int] | None = None, count: int = 20) -> list:
    """Answers of the first `count` requests submitted together, in the workload's order."""
    all_prompts, all_params = prompts()[:count], params(count)
    order = order or list(range(count))
    outputs = llm.generate(
        [all_prompts[i] for i in order], [all_params[i] for i in order], use_tqdm=False
    )
    answers: list = [None] * len(order)
    for i, output in zip(order, outputs, strict=True):
        answers[i] = answer(output)
    return answers


def make(executor: str = "uni", **flags) -> LLM:
    given = {**COMMON, "distributed_executor_backend": executor, **flags}
    return LLM(str(small_model()), **given)


def test_the_whole_model():
    with LLM(**COMMON) as llm:
        events = watch(llm)
        assert run(llm, count=10) == each_alone("", 10)
        assert events.most_rows == 10


def test_in_a_batch_of_64(executor, alone):
    with make(executor) as llm:
        events = watch(llm)
        assert run(llm, count=64) == alone
        assert events.most_rows == 64


@pytest.mark.parametrize(
    ("executor", "budget"), [("uni", 16), ("loopback", 33), ("loopback", 256), ("uni", 2048)]
)
def test_any_token_budget(executor, alone, budget):
    with make(executor, max_num_batched_tokens=budget, max_num_seqs=min(budget, 24)) as llm:
        events = watch(llm)
        assert run(llm) == alone[:20]
        assert events.most_rows >= 2
        if budget < 64:
            assert events.most_chunks >= 3


def test_prefix_cache_cold_hit_and_partly_evicted(executor, alone):
    with make(executor, num_gpu_blocks_override=260) as llm:
        assert run(llm, count=64) == alone
        kv = llm._core.scheduler.kv
        hits = kv.counters.prefix_hits
        assert run(llm, list(reversed(range(64))), count=64) == alone
        assert kv.counters.prefix_hits > hits
        assert kv.pool.num_evicted > 0


def test_prefix_cache_off(alone):
    with make(enable_prefix_caching=False) as llm:
        assert run(llm) == alone[:20]
        assert llm._core.scheduler.kv.counters.prefix_hits == 0


def test_under_preemption(executor, alone):
    with make(executor, num_gpu_blocks_override=64, max_num_seqs=32) as llm:
        assert run(llm) == alone[:20]
        assert llm._core.scheduler.counters.num_preemptions > 0


@pytest.mark.parametrize("flags", [{"block_size": 64}, {"num_threads": 1}, {"enforce_eager": True}])
def test_blocks_threads_and_op_by_op(alone, flags):
    with make(**flags) as llm:
        assert run(llm) == alone[:20]


@pytest.mark.parametrize(("executor", "level"), [("uni", 1), ("loopback", 2)])
def test_after_sleep(executor, alone, level):
    with make(executor) as llm:
        run(llm, list(range(8)))
        llm.sleep(level)
        llm.wake_up()
        assert run(llm) == alone[:20]


def test_streamed_pieces_add_up(alone):
    with make() as llm:
        for i in (0, 2, 5, 9):
            ids: list[int] = []
            text = ""
            pieces = 0
            for piece in llm.stream(prompts()[i], params()[i]):
                ids += piece.outputs[0].token_ids
                text += piece.outputs[0].text
                pieces += 1
            assert pieces > MAX_TOKENS / 2
            assert [(ids, text)] == [(o[1], o[2]) for o in alone[i][2]]


def test_four_children_equal_four_requests(executor):
    shared = SamplingParams(n=4, temperature=1.0, seed=5, max_tokens=MAX_TOKENS, logprobs=1)
    prompt = prompts()[3]
    for caching in (True, False):
        with make(executor, enable_prefix_caching=caching) as llm:
            together = answer(llm.generate([prompt], shared, use_tqdm=False)[0])[2]
            assert len({tuple(o[1]) for o in together}) > 1
            for i, one in enumerate(together):
                single = SamplingParams(
                    temperature=1.0, seed=5 + i, max_tokens=MAX_TOKENS, logprobs=1
                )
                got = answer(llm.generate([prompt], single, use_tqdm=False)[0])[2][0]
                assert got[1:] == one[1:]
