"""Pooled vectors of a decoder, from request to the engine's output, on real kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galley.engine.build import build_core
from galley.errors import InvalidRequest, RequestFailed
from galley.executor.local import LocalExecutor
from galley.executor.loopback import LoopbackExecutor
from galley.frontend.client import InprocClient
from galley.frontend.input_processor import InputProcessor, Limits
from galley.frontend.output_processor import OutputProcessor
from galley.request import FinishReason, PoolingParams, Request, SamplingParams
from galley.runner.runner import Runner
from tests.models.checkpoints import CASES, SIZES, StateDict, make
from tests.runner.models import MACHINE, configure

MAX_LEN = 96
PARAMS = {
    "cls": PoolingParams(pooling="CLS"),
    "last": PoolingParams(),
    "mean": PoolingParams(pooling="MEAN"),
    "raw mean": PoolingParams(pooling="MEAN", use_activation=False),
}


@pytest.fixture(scope="module")
def model():
    return make(CASES["llama-mha"])


@pytest.fixture(scope="module")
def checkpoint(model):
    return StateDict(model)


def core_of(checkpoint, executor=LocalExecutor, pooling=True, **flags):
    info = checkpoint.model_info
    options = {"num_threads": 1, "max_model_len": MAX_LEN, "dtype": "float32", **flags}
    config = configure(info, **options)
    runner = Runner(config, info, checkpoint, MACHINE.available_memory, pooling=pooling)
    return build_core(config, executor(runner))


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, SIZES["vocab_size"], n).tolist() for n in (1, 5, 17, 33, 64, MAX_LEN)]


def request(handle: int, prompt: list[int], params, **more) -> Request:
    return Request(
        handle=handle,
        request_id=str(handle),
        prompt_token_ids=np.array(prompt, np.int32).tobytes(),
        params=params,
        max_total_tokens=MAX_LEN,
        **more,
    )


def run(core) -> dict[int, object]:
    ends = {}
    while core.has_work:
        for _, out in core.step():
            core.check_integrity()
            ends.update({e.handle: e for e in out.finished})
    assert core.scheduler.kv.pool.num_used == 0
    return ends


def vectors(core, batch) -> dict[int, bytes]:
    core.add(batch)
    ends = run(core)
    assert all(e.reason == FinishReason.STOP for e in ends.values())
    return {handle: e.pooled for handle, e in ends.items()}


@pytest.fixture(scope="module")
def alone(checkpoint):
    """Kind → the vector of each prompt, computed alone and whole."""
    core = core_of(checkpoint, enable_prefix_caching=False)
    return {
        kind: [vectors(core, [request(1, prompt, params)])[1] for prompt in prompts()]
        for kind, params in PARAMS.items()
    }


@pytest.mark.parametrize("kind", PARAMS)
def test_vectors_are_the_models_own(model, alone, kind) -> None:
    for prompt, got in zip(prompts(), alone[kind], strict=True):
        with torch.no_grad():
            hidden = model.model(torch.tensor([prompt])).last_hidden_state[0].double()
        want = {"cls": hidden[0], "last": hidden[-1]}.get(kind, hidden.mean(0))
        if kind != "raw mean":
            want = want / want.norm()
        np.testing.assert_allclose(np.frombuffer(got, np.float32), want.numpy(), atol=2e-5)


FLAGS = {
    "together": {},
    "chunks": {"max_num_batched_tokens": 16},
    "few rows": {"max_num_seqs": 2},
    "no prefix cache": {"enable_prefix_caching": False},
}


@pytest.mark.parametrize("executor", [LocalExecutor, LoopbackExecutor])
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_the_same_bits_in_company_in_chunks_and_from_the_cache(
    checkpoint, alone, flags, executor
) -> None:
    """Requests that pool and requests that generate share the steps."""
    core = core_of(checkpoint, executor, **flags)
    kinds = list(PARAMS)
    for _ in range(2):
        batch = [
            request(10 * k + i, prompt, PARAMS[kind])
            for k, kind in enumerate(kinds)
            for i, prompt in enumerate(prompts())
        ]
        batch[3:3] = [request(99, [1, 2, 3], SamplingParams(max_tokens=20, temperature=0.0))]
        core.add(batch)
        ends = run(core)
        assert ends.pop(99).reason == FinishReason.LENGTH
        assert len(ends) == len(kinds) * len(prompts())
        for handle, end in ends.items():
            assert end.pooled == alone[kinds[handle // 10]][handle % 10]
    assert (core.scheduler.kv.counters.prefix_hits > 0) == flags.get("enable_prefix_caching", True)


def test_a_prompt_that_is_recomputed_after_preemption_pools_the_same(checkpoint, alone) -> None:
    core = core_of(checkpoint, max_num_batched_tokens=16)
    core.add([request(1, prompts()[4], PARAMS["mean"])])
    core.step()
    core.step()
    core.reset_prefix_cache(reset_running_requests=True)
    assert run(core)[1].pooled == alone["mean"][4]
    assert core.scheduler.counters.num_preemptions == 1


def test_in_one_piece_is_a_property_of_the_sequence(checkpoint, alone) -> None:
    core = core_of(checkpoint, max_num_batched_tokens=64)
    plans = []
    submit = core.executor.submit
    core.executor.submit = lambda plan: (plans.append(plan), submit(plan))[1]
    whole = [request(i, p, PARAMS["mean"], in_one_piece=True) for i, p in enumerate(prompts()[:5])]
    split = [request(9, prompts()[5], PARAMS["mean"])]
    got = vectors(core, split + whole)
    assert [got[i] for i in range(5)] == alone["mean"][:5]
    assert got[9] == alone["mean"][5]
    slots: dict[int, list[int]] = {}
    for plan in plans:
        for handle, n in zip(plan.handles.tolist(), plan.num_new.tolist(), strict=True):
            slots.setdefault(handle, []).append(n)
    assert len(slots.pop(9)) > 1
    assert slots == {i: [len(p)] for i, p in enumerate(prompts()[:5])}
    core.add([request(1, prompts()[5], PARAMS["mean"], in_one_piece=True)])
    end = run(core)[1]
    assert "96 tokens and is computed in one piece" in end.error.message


def test_errors_name_what_is_missing(checkpoint) -> None:
    core = core_of(checkpoint, pooling=False)
    core.add([request(1, [1, 2, 3], PARAMS["last"]), request(2, [1] * 97, PARAMS["last"])])
    ends = run(core)
    assert "not started for pooling" in ends[1].error.message
    assert "97 tokens, --max-model-len is 96" in ends[2].error.message


def test_from_a_prompt_to_its_output(checkpoint, alone) -> None:
    """Input processor, engine and output processor, as an offline client runs them."""
    core = core_of(checkpoint)
    info = checkpoint.model_info
    limits = Limits(vocab_size=info.vocab_size, max_model_len=MAX_LEN)
    client = InprocClient(core, InputProcessor(limits, None), OutputProcessor(None))
    for kind, params in PARAMS.items():
        got = client.pool(prompts(), params)
        assert [output.outputs.data.tobytes() for output in got] == alone[kind]
        assert [output.prompt_token_ids for output in got] == prompts()
    long = [1] * (MAX_LEN + 1)
    with pytest.raises(InvalidRequest, match="the prompt has 97 tokens"):
        client.pool([long], PoolingParams())
    (cut,) = client.pool([long], PoolingParams(truncate_prompt_tokens=-1))
    assert len(cut.prompt_token_ids) == MAX_LEN, "no room is kept for output"
    generating = client.add([1, 2, 3], SamplingParams(max_tokens=4, temperature=0.0), "g")
    client.pool(prompts(), PARAMS["mean"])
    (output,) = [o for o in client.stream(generating) if o.finished]
    assert len(output.outputs[0].token_ids) == 4
    assert not core.has_work
    client = InprocClient(core_of(checkpoint, pooling=False), client.inputs, OutputProcessor(None))
    with pytest.raises(RequestFailed, match="not started for pooling"):
        client.pool([[1, 2]], PoolingParams())
    with pytest.raises(InvalidRequest, match="PoolingParams has no field poling"):
        PoolingParams(poling="MEAN")
