"""The runner on a tiny model: samples as the sampler's definition does, masks, failures, sizes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from galley.errors import ConfigError, ModelError
from galley.executor.local import LocalExecutor
from galley.kernels.sampling_reference import SampleParams, logprobs_row, sample_row
from galley.loader import open_checkpoint
from galley.loader.source import Source
from galley.models.footprint import measure
from galley.request import SamplingParams
from galley.runner.runner import Runner
from tests.executor.toy import GREEDY, Toy
from tests.models.checkpoints import CASES, SIZES, StateDict, make
from tests.runner.models import MACHINE, configure, open_runner
from tests.small_model import small_model

VOCAB = SIZES["vocab_size"]
PROMPT = [5, 17, 99, 3, 64, 17, 8, 120, 42, 5, 11]


@pytest.fixture(scope="module")
def checkpoint():
    return StateDict(make(CASES["llama-mha"]))


@pytest.fixture
def runner(checkpoint):
    return open_runner(checkpoint, max_model_len=128)


def toy_of(runner: Runner, slots: int = 8) -> Toy:
    return Toy(LocalExecutor(runner), slots, runner.max_model_len)


def logits_of(runner: Runner) -> np.ndarray:
    return runner._executable.logits.copy()


def words(allowed) -> np.ndarray:
    bits = np.zeros(-(-VOCAB // 64) * 64, np.bool_)
    bits[list(allowed)] = True
    return np.packbits(bits, bitorder="little").view(np.uint64)


CASES_OF_SAMPLING = {
    "greedy": ({"temperature": 0.0}, SampleParams()),
    "temperature": ({"temperature": 1.3, "seed": 7}, SampleParams(temperature=1.3, seed=7)),
    "top-p": (
        {"temperature": 2.0, "top_p": 0.8, "seed": 1},
        SampleParams(temperature=2.0, top_p=0.8, seed=1),
    ),
    "top-k": (
        {"temperature": 3.0, "top_k": 4, "seed": 2},
        SampleParams(temperature=3.0, top_k=4, seed=2),
    ),
    "min-p": (
        {"temperature": 2.0, "min_p": 0.1, "seed": -3},
        SampleParams(temperature=2.0, min_p=0.1, seed=2**64 - 3),
    ),
    "penalties": (
        {
            "temperature": 0.0,
            "presence_penalty": 1.5,
            "frequency_penalty": 0.7,
            "repetition_penalty": 1.4,
        },
        SampleParams(presence=1.5, frequency=0.7, repetition=1.4),
    ),
}


@pytest.mark.parametrize("name", CASES_OF_SAMPLING)
def test_every_token_is_the_definition_s(runner, name):
    args, params = CASES_OF_SAMPLING[name]
    toy = toy_of(runner)
    # Logprobs are asked for so that logits are written.
    sequences = [
        toy.add(slot, PROMPT[slot:], SamplingParams(**args, logprobs=0, max_tokens=None))
        for slot in range(3)
    ]
    for _ in range(12):
        before = [list(s.tokens) for s in sequences]
        toy.run([(s, len(s.tokens) - s.computed) for s in sequences])
        for s, known, row in zip(sequences, before, logits_of(runner), strict=True):
            history = np.array(known, np.int32)
            assert s.tokens[-1] == sample_row(row, params, history, s.num_prompt)
    assert len({tuple(s.output) for s in sequences}) > 1
    alone = toy.add(3, PROMPT, SamplingParams(**args, max_tokens=None))
    toy.generate([alone], 12)
    assert alone.output == sequences[0].output


def test_logprobs_are_of_the_raw_logits(runner):
    toy = toy_of(runner)
    params = SamplingParams(temperature=1.0, seed=3, logprobs=4, logit_bias={7: 50.0})
    s = toy.add(2, PROMPT, params)
    result = toy.run([(s, len(PROMPT))])
    assert s.output == [7]
    want = logprobs_row(logits_of(runner)[0], 7, 4)
    columns = result.logprobs
    assert columns.token_ids.tolist() == [7, *want.top_ids.tolist()]
    assert np.allclose(columns.logprobs, [want.logprob, *want.top_logprobs], atol=1e-5)
    assert columns.ranks.tolist() == [want.rank]
    assert columns.positions.tolist() == [len(PROMPT)]


def test_prompt_logprobs_do_not_depend_on_the_chunks(checkpoint):
    def entries(chunks):
        toy = toy_of(open_runner(checkpoint, max_model_len=128))
        s = toy.add(0, PROMPT, SamplingParams(temperature=0.0, prompt_logprobs=3))
        columns = [toy.run([(s, n)]).prompt_logprobs for n in chunks]
        return [
            np.concatenate([getattr(c, name) for c in columns if c is not None])
            for name in ("positions", "ranks", "token_ids", "logprobs")
        ]

    whole = entries([11])
    assert whole[0].tolist() == list(range(1, 11))
    assert whole[2].reshape(10, 4)[:, 0].tolist() == PROMPT[1:]
    for chunks in ([1] * 11, [4, 4, 3], [10, 1]):
        for ours, theirs in zip(whole, entries(chunks), strict=True):
            assert np.array_equal(ours, theirs)


def test_allowed_tokens_min_tokens_and_bad_words_hold_while_decoding(runner):
    toy = toy_of(runner)
    allowed = [2, 5, 9, 30, 31]
    limited = toy.add(0, PROMPT, SamplingParams(temperature=1.5, seed=1, allowed_token_ids=allowed))
    late = toy.add(
        1,
        PROMPT,
        SamplingParams(
            temperature=1.5, seed=2, min_tokens=5, stop_token_ids=[9], allowed_token_ids=[2, 9, 30]
        ),
    )
    free = toy.add(2, PROMPT)
    toy.generate([limited, late, free], 20)
    assert set(limited.output) <= set(allowed)
    assert set(late.output[:5]) == {30}
    assert {2, 9} & set(late.output[5:])

    again = toy_of(open_runner_like(runner))
    first, second = free.output[:2]
    # The second free token must not follow the first one.
    params = SamplingParams(temperature=0.0, bad_words=["x"])
    barred = again.add(0, PROMPT, params, bad_words=[[first, second]])
    again.generate([barred], 3)
    assert barred.output[0] == first
    assert barred.output[1] != second


def open_runner_like(runner: Runner) -> Runner:
    """The same runner with its requests forgotten."""
    runner.reset()
    return runner


def test_a_grammar_mask_is_applied_between_forward_and_sampling(runner):
    toy = toy_of(runner)
    rows = [toy.add(0, PROMPT), toy.add(1, PROMPT)]
    plan = toy.plan([(s, len(PROMPT)) for s in rows])
    plan.masked_logits = np.array([1], np.int32)
    mask = np.zeros((1, -(-VOCAB // 64)), np.uint64)
    mask[0, 77 // 64] = 1 << (77 % 64)
    runner.execute(plan)
    result = runner.sample(mask)
    free = int(np.argmax(logits_of(runner)[0]))
    assert result.token_ids.tolist() == [free, 77]


def test_processors_rewrite_their_row_alone(runner):
    toy = toy_of(runner)
    seen = []

    def only_even(token_ids, logits):
        seen.append(list(token_ids))
        logits[1::2] = -np.inf
        return logits

    even = toy.add(1, PROMPT, SamplingParams(temperature=0.0, logits_processors=[only_even]))
    free = toy.add(0, PROMPT)
    toy.generate([free, even], 6)
    assert all(token % 2 == 0 for token in even.output)
    assert any(token % 2 for token in free.output)
    assert seen == [even.output[:i] for i in range(6)]


def test_a_row_fails_alone(runner):
    def nothing(_, logits):
        return np.full_like(logits, -np.inf)

    def broken(_, logits):
        raise KeyError("x")

    toy = toy_of(runner)
    rows = [
        toy.add(0, PROMPT),
        toy.add(1, PROMPT, SamplingParams(temperature=0.0, logits_processors=[nothing])),
        toy.add(2, PROMPT, SamplingParams(temperature=0.0, logits_processors=[broken])),
    ]
    result = toy.run([(s, len(PROMPT)) for s in rows])
    assert result.num_sampled.tolist() == [1, 0, 0]
    assert set(result.errors) == {1, 2}
    assert "no token can be sampled" in result.errors[1].message
    assert "KeyError" in result.errors[2].message


def test_a_slot_is_clean_for_its_next_request(runner):
    toy = toy_of(runner)
    alone = toy.add(4, PROMPT)
    toy.generate([alone], 8)
    toy.free(alone)
    params = SamplingParams(
        temperature=1.0, seed=9, allowed_token_ids=[1, 2], logprobs=5, repetition_penalty=2.0
    )
    odd = toy.add(4, PROMPT[3:], params)
    toy.generate([odd], 3)
    toy.free(odd)
    again = toy.add(4, PROMPT)
    results = toy.generate([again], 8)
    assert again.output == alone.output
    assert all(r.logprobs is None for r in results)


def test_copied_blocks_carry_a_sequence_on(runner):
    toy = toy_of(runner)
    source = toy.add(0, PROMPT)
    toy.generate([source], 30)
    copy = toy.add(1, source.tokens[:33])
    copy.num_prompt, copy.computed = len(PROMPT), 32
    plan = toy.plan([(copy, 1)])
    plan.copy_src = np.array([1, 2], np.int32)
    plan.copy_dst = np.array([1 + toy.each, 2 + toy.each], np.int32)
    result = toy.executor.submit(plan).sample()
    assert result.token_ids.tolist() == [source.tokens[33]]


def count_calls(runner: Runner, rows: int) -> int:
    """Python function calls of one decode step of so many rows."""
    toy = toy_of(runner, slots=64)
    sequences = [toy.add(slot, PROMPT) for slot in range(rows)]
    toy.run([(s, len(PROMPT)) for s in sequences])
    toy.run([(s, 1) for s in sequences])
    plan = toy.plan([(s, 1) for s in sequences])
    calls = 0

    def profile(_frame, event, _arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        toy.executor.submit(plan).sample()
    finally:
        sys.setprofile(None)
    runner.reset()
    return calls


def test_a_decode_step_costs_the_same_for_many_rows(checkpoint):
    runner = open_runner(checkpoint, max_model_len=32, max_num_seqs=64)
    few, many = count_calls(runner, 4), count_calls(runner, 64)
    assert few == many
    assert few < 150


def test_a_pool_too_small_for_the_length_is_refused_with_numbers(checkpoint):
    with pytest.raises(ConfigError, match="lower --max-model-len to 48"):
        open_runner(checkpoint, max_model_len=128, num_gpu_blocks_override=4)
    with pytest.raises(ConfigError, match=r"--kv-cache-memory-bytes leaves it 0\.00 GiB"):
        open_runner(checkpoint, max_model_len=128, kv_cache_memory_bytes=1000)


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"kv_cache_memory_bytes": 1000}, "kv_cache_memory_bytes"),
        ({"kv_cache_memory_bytes": 30_000}, "max_model_len"),
        ({"num_gpu_blocks_override": 3}, "max_model_len"),
    ],
)
def test_a_size_that_is_too_small_is_reported_before_loading(checkpoint, monkeypatch, flags, field):
    def read_tensor(name):
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(checkpoint, "tensor", read_tensor)
    with pytest.raises(ConfigError) as error:
        open_runner(checkpoint, max_model_len=128, **flags)
    assert error.value.field == field


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_size_of_a_block_is_known_without_the_model(checkpoint, backend, dtype):
    runner = open_runner(checkpoint, max_model_len=64, backend=backend, dtype=dtype)
    known = measure(checkpoint.model_info).kv_token_bytes(runner._backend.kv)
    assert runner.groups[0].bytes_per_token == known


def test_minus_one_fits_the_length_to_the_pool(checkpoint):
    assert open_runner(checkpoint, max_model_len=-1).max_model_len == 256
    small = open_runner(checkpoint, max_model_len=-1, num_gpu_blocks_override=4)
    assert (small.max_model_len, small.num_blocks) == (48, 4)
    assert small.table.max_len == 48


def test_the_cache_is_as_large_as_it_says(checkpoint):
    runner = open_runner(checkpoint, max_model_len=128, kv_cache_memory_bytes=10**6)
    memory = runner.memory()
    assert 0 < 10**6 - memory["kv_cache"] < runner.groups[0].block_bytes
    # 3 layers, K and V, 4 heads of 16, bfloat16
    assert runner.groups[0].bytes_per_token == 3 * 2 * 4 * 16 * 2
    full = open_runner(checkpoint, max_model_len=128, dtype="float32", num_gpu_blocks_override=9)
    assert full.groups[0].bytes_per_token == 3 * 2 * 4 * 16 * 4


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_block_sizes_do_not_change_tokens(checkpoint, runner, block_size):
    want = toy_of(runner).add(0, PROMPT)
    toy_of(runner).generate([want], 40)
    other = open_runner(checkpoint, max_model_len=128, block_size=block_size)
    toy = toy_of(other)
    got = toy.add(0, PROMPT)
    toy.generate([got], 40)
    assert got.output == want.output


def test_tensors_left_over_or_missing_are_errors(checkpoint):
    class Changed:
        model_info = checkpoint.model_info

        def __init__(self, names):
            self._names = names

        def names(self):
            return self._names

        def header(self, name):
            return checkpoint.header(name)

        def tensor(self, name):
            return checkpoint.tensor(name)

    names = checkpoint.names()
    with pytest.raises(ModelError, match=r"no tensor model\.norm\.weight"):
        open_runner(Changed([n for n in names if n != "model.norm.weight"]))
    extra = Changed([*names, "model.layers.7.extra"])
    extra.header = lambda name: checkpoint.header(names[0])
    with pytest.raises(ModelError, match=r"model\.layers\.7\.extra"):
        open_runner(extra)


def test_a_dummy_checkpoint_runs_and_is_never_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("GALLEY_CACHE_DIR", str(tmp_path))

    def tokens(seed):
        source = Source(small_model(), "dummy", "m", seed=seed)
        runner = open_runner(open_checkpoint(source), max_model_len=64, load_format="dummy")
        toy = toy_of(runner, slots=1)
        s = toy.add(0, PROMPT)
        toy.generate([s], 4)
        return s.output

    assert tokens(1) == tokens(1) != tokens(2)
    assert not list(tmp_path.iterdir())


def test_progress_counts_the_bytes_of_the_tensors(checkpoint):
    seen = []
    config = configure(checkpoint.model_info, max_model_len=64)
    Runner(
        config,
        checkpoint.model_info,
        checkpoint,
        MACHINE.available_memory,
        lambda done, total: seen.append((done, total)),
    )
    total = sum(checkpoint.tensor(name).data.nbytes for name in checkpoint.names())
    assert len(seen) == len(checkpoint.names())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_what_runs_can_be_printed_and_timed(runner):
    assert "attention" in runner.describe()
    toy = toy_of(runner)
    s = toy.add(0, PROMPT)
    runner.profile(True)
    toy.generate([s], 3)
    runner.profile(False)
    runs = {name: count for name, count, _ in runner.timings()}
    assert runs["attention"] == 3
    assert runs["sample"] == 3


def test_steps_alternate(runner):
    toy = toy_of(runner)
    s = toy.add(0, PROMPT, GREEDY)
    runner.execute(toy.plan([(s, 11)]))
    with pytest.raises(AssertionError):
        runner.execute(toy.plan([(s, 11)]))
    runner.sample()
    with pytest.raises(AssertionError):
        runner.sample()
