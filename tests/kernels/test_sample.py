"""The sampler against its definition in numpy, token for token, and its distribution."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import fields, replace

from galley.kernels.sampling_reference import (
    SampleParams,
    filtered_weights,
    logprobs_row,
    sample_row,
    uniform,
)
from tests.kernels.native_harness import ISAS, Native, aligned, use_isa

DTYPES = {"top_k": np.int32, "seed": np.uint64, "num_logprobs": np.int32}


class Case:
    """Slots with their own parameters, history and one logits row each."""

    def __init__(
        self, logits, params, num_logprobs=None, top=0, max_len=48, isa=ISAS[-1], gap=0, **kw
    ):
        rows, self.vocab = logits.shape
        self.params = params
        columns = {
            f.name: np.array([getattr(p, f.name) for p in params], DTYPES.get(f.name, np.float32))
            for f in fields(SampleParams)
        }
        counts = [-1] * rows if num_logprobs is None else num_logprobs
        columns["num_logprobs"] = np.array(counts, np.int32)
        self.native = Native(
            slots=rows, max_len=max_len, vocab=self.vocab, sampling=columns, seed=3, **kw
        )
        rng = np.random.default_rng(7)
        self.native.num_tokens[:] = rng.integers(2, max_len, rows)
        self.native.num_prompt[:] = rng.integers(1, self.native.num_tokens)
        self.native.num_computed[:] = self.native.num_tokens - 1
        memory = np.full((rows, self.vocab + gap), np.nan, np.float32)
        memory[:, : self.vocab] = logits
        self.logits = memory[:, : self.vocab]
        self.token_ids = aligned(rows, np.int32)
        self.logprob, self.rank = aligned(rows, np.float32), aligned(rows, np.int32)
        self.top_ids = aligned((rows, max(top, 1)), np.int32)
        self.top_logprobs = aligned((rows, max(top, 1)), np.float32)
        arrays = {
            "logits": memory,
            "token_ids": self.token_ids,
            "logprob": self.logprob,
            "rank": self.rank,
            "top_ids": self.top_ids,
            "top_logprobs": self.top_logprobs,
        }
        with use_isa(isa):
            self.native.add(
                "sample", arrays, vocab=self.vocab, logits_stride=self.vocab + gap, top_stride=top
            )

    def history(self, slot):
        return self.native.history[slot, : self.native.num_tokens[slot]]

    def run(self, slots=None, num_sampled=None):
        slots = list(range(len(self.logits))) if slots is None else slots
        n = len(slots)
        self.native.run([1] * n, slots=slots, num_logits=[1] * n, num_sampled=num_sampled)
        return self.token_ids[:n].copy()

    def expected(self, slot, mask=None, bias=None):
        return sample_row(
            self.logits[slot],
            self.params[slot],
            self.history(slot),
            int(self.native.num_prompt[slot]),
            mask,
            bias,
        )


def random_logits(rows, vocab, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * scale).astype(np.float32)


def random_params(rng):
    def maybe(value, off):
        return value if rng.random() < 0.5 else off

    return SampleParams(
        temperature=float(rng.choice([0.0, 0.3, 0.7, 1.0, 1.5, 5.0])),
        top_p=maybe(float(rng.uniform(0.05, 1.0)), 1.0),
        min_p=maybe(float(rng.uniform(0.0, 0.3)), 0.0),
        top_k=maybe(int(rng.integers(1, 60)), 0),
        presence=maybe(float(rng.uniform(-2, 2)), 0.0),
        frequency=maybe(float(rng.uniform(-2, 2)), 0.0),
        repetition=maybe(float(rng.uniform(0.5, 2)), 1.0),
        seed=int(rng.integers(0, 2**63)),
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab", [2, 17, 64, 100, 1000, 5000])
def test_tokens_equal_the_definition(isa, vocab):
    rng = np.random.default_rng(vocab)
    params = [random_params(rng) for _ in range(400)]
    case = Case(random_logits(len(params), vocab, vocab), params, isa=isa)
    tokens = case.run()
    assert tokens.tolist() == [case.expected(s) for s in range(len(params))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 20.0])
@pytest.mark.parametrize(
    "limits",
    [{}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 50}, {"top_k": 30000}, {"min_p": 0.02}],
)
def test_large_vocabulary(isa, temperature, limits):
    params = [SampleParams(temperature=temperature, seed=s, **limits) for s in range(8)]
    case = Case(random_logits(8, 49152), params, isa=isa)
    assert case.run().tolist() == [case.expected(s) for s in range(8)]


@pytest.mark.parametrize("isa", ISAS)
def test_greedy_takes_the_lowest_of_equal_ids(isa):
    logits = random_logits(4, 1000)
    for row, ids in enumerate([[3, 900], [16, 17], [999, 15], [0, 512]]):
        logits[row, ids] = 50
    case = Case(logits, [SampleParams()] * 4, isa=isa)
    assert case.run().tolist() == [3, 16, 15, 0]


@pytest.mark.parametrize("isa", ISAS)
def test_equal_logits_at_the_border(isa):
    """top_k keeps all that equal the k-th, top_p the lowest ids first."""
    logits = np.zeros((64, 8), np.float32)
    for params, kept in [
        (SampleParams(temperature=1, top_k=3), set(range(8))),
        (SampleParams(temperature=1, top_p=0.5), {0, 1, 2, 3}),
        (SampleParams(temperature=1, top_p=0.501), {0, 1, 2, 3, 4}),
        (SampleParams(temperature=1, top_p=1e-9), {0}),
        (SampleParams(temperature=1, min_p=1.0), set(range(8))),
    ]:
        case = Case(logits, [replace(params, seed=s) for s in range(64)], isa=isa)
        assert set(case.run().tolist()) == kept
        assert set(np.flatnonzero(filtered_weights(logits[0], params))) == kept


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "params",
    [
        SampleParams(temperature=1.0),
        SampleParams(temperature=0.7, top_p=0.8),
        SampleParams(temperature=1.3, top_k=6),
        SampleParams(temperature=1.0, min_p=0.1),
        SampleParams(temperature=2.0, min_p=0.05, top_k=12, top_p=0.95),
    ],
)
def test_distribution_by_chi_square(isa, params):
    samples, vocab = 20000, 20
    logits = np.repeat(random_logits(1, vocab, scale=1.5), samples, axis=0)
    case = Case(logits, [replace(params, seed=s) for s in range(samples)], max_len=16, isa=isa)
    counts = np.bincount(case.run(), minlength=vocab)
    weights = filtered_weights(logits[0], params)
    kept = weights > 0
    assert counts[~kept].sum() == 0
    expected = samples * weights[kept] / weights.sum()
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    freedom = kept.sum() - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_distribution_over_positions():
    """One seed, many positions: tokens of a single request."""
    samples = 20000
    counts = np.zeros(10, np.int64)
    running = np.arange(1, 11) / 10
    for position in range(samples):
        counts[np.searchsorted(running, uniform(42, position), side="right")] += 1
    assert ((counts - samples / 10) ** 2 / (samples / 10)).sum() < 9 + 4 * np.sqrt(18)


def test_generator_is_philox():
    """The known answer of Philox4x32-10 for key 0, counter 0."""
    assert uniform(0, 0) == (0x6627E8D5E169C58D >> 11) / 2**53


@pytest.mark.parametrize("isa", ISAS)
def test_row_does_not_depend_on_its_batch(isa):
    rng = np.random.default_rng(5)
    params = [random_params(rng) for _ in range(30)]
    case = Case(random_logits(30, 700), params, [5] * 30, top=5, isa=isa, threads=2)
    whole = case.run()
    names = ("token_ids", "logprob", "rank", "top_ids", "top_logprobs")
    batch = {name: getattr(case, name).copy() for name in names}
    for slot in range(30):
        logits = case.logits[:1].copy()
        case.logits[0] = case.logits[slot]
        assert case.run([slot]).tolist() == [whole[slot]]
        for name in names:
            assert np.array_equal(getattr(case, name)[0], batch[name][slot])
        case.logits[0] = logits


@pytest.mark.parametrize("isa", ISAS)
def test_sample_depends_on_seed_and_position(isa):
    logits = np.zeros((40, 5000), np.float32)
    params = [SampleParams(temperature=1.0, seed=s) for s in range(20)] * 2
    case = Case(logits, params, isa=isa)
    case.native.num_tokens[:] = 20
    case.native.num_computed[:] = [10] * 20 + [11] * 20
    tokens = case.run()
    assert len(set(tokens.tolist())) > 35
    assert np.array_equal(case.run(), tokens)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [0, 1, 5, 20, 100, 300])
@pytest.mark.parametrize("vocab", [300, 4099])
def test_logprobs(isa, k, vocab):
    logits = random_logits(6, vocab)
    logits[1] = np.round(logits[1])  # many equal ones
    logits[2, 50:] = -np.inf
    case = Case(logits, [SampleParams()] * 5 + [SampleParams(1.0, seed=9)], [k] * 6, top=k, isa=isa)
    tokens = case.run()
    for row, token in enumerate(tokens):
        expected = logprobs_row(logits[row], int(token), k)
        assert case.rank[row] == expected.rank
        np.testing.assert_allclose(case.logprob[row], expected.logprob, rtol=1e-5, atol=1e-6)
        assert np.array_equal(case.top_ids[row, :k], expected.top_ids)
        np.testing.assert_allclose(
            case.top_logprobs[row, :k], expected.top_logprobs, rtol=1e-5, atol=1e-6
        )


def test_all_logprobs_of_a_large_vocabulary():
    vocab = 20000
    logits = random_logits(1, vocab)
    case = Case(logits, [SampleParams()], [vocab], top=vocab)
    token = case.run()[0]
    assert np.array_equal(case.top_ids[0], logprobs_row(logits[0], int(token), vocab).top_ids)
    assert abs(np.exp(case.top_logprobs[0].astype(np.float64)).sum() - 1) < 1e-5


def test_logprobs_are_of_the_raw_row():
    logits = random_logits(1, 100)
    params = [SampleParams(0.5, top_k=3, repetition=1.7, presence=1.0, seed=1)]
    case = Case(logits, params, [3], top=3)
    token = case.run()[0]
    expected = logprobs_row(logits[0], int(token), 3)
    assert case.rank[0] == expected.rank
    np.testing.assert_allclose(case.logprob[0], expected.logprob, rtol=1e-5)


def test_lists_are_cut_at_the_stride():
    case = Case(random_logits(2, 100), [SampleParams()] * 2, [50, 2], top=4)
    case.top_ids[:] = -7
    case.run()
    assert (case.top_ids[0] >= 0).all()
    assert (case.top_ids[1] >= 0).tolist() == [True, True, False, False]


def test_prompt_rows_get_their_next_token():
    vocab = 100
    logits = random_logits(3, vocab)
    case = Case(logits, [SampleParams(1.0)] * 3, [2] * 3, top=2, max_len=32)
    case.native.num_tokens[:] = 20
    case.native.num_computed[:] = [5, 18, 19]
    tokens = case.run(num_sampled=[0, 0, 0])
    history = case.native.history
    assert tokens.tolist() == [history[0, 6], history[1, 19], -1]
    for row in (0, 1):
        expected = logprobs_row(logits[row], int(tokens[row]), 2)
        assert case.rank[row] == expected.rank
        np.testing.assert_allclose(case.logprob[row], expected.logprob, rtol=1e-5)
    assert case.logprob[2] == -np.inf


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab", [100, 128, 1000])
def test_masks_and_biases(isa, vocab):
    rng = np.random.default_rng(1)
    rows = 60
    params = [random_params(rng) for _ in range(rows)]
    case = Case(random_logits(rows, vocab), params, isa=isa)
    words = -(-vocab // 64)
    masks, biases, addresses = [], [], np.zeros(rows, np.uint64)
    for row in range(rows):
        mask = rng.integers(0, 2**64, words, np.uint64) if row % 3 else None
        if row % 6 == 1:
            mask = np.zeros(words, np.uint64)
            mask[vocab // 2 // 64] = np.uint64(1) << np.uint64(vocab // 2 % 64)
        masks.append(mask)
        addresses[row] = 0 if mask is None else mask.ctypes.data
        n = int(rng.integers(0, 4)) if row % 2 else 0
        values = rng.choice([-100.0, -5.0, 3.0, 100.0, -np.inf], n).astype(np.float32)
        biases.append((rng.integers(0, vocab, n, np.int32), values))
    indptr = np.cumsum([0] + [len(ids) for ids, _ in biases], dtype=np.int32)
    ids = np.concatenate([i for i, _ in biases])
    values = np.concatenate([v for _, v in biases])
    case.native.bind(mask=addresses, bias_indptr=indptr, bias_ids=ids, bias_values=values)
    tokens = case.run().tolist()
    assert tokens == [case.expected(s, masks[s], biases[s]) for s in range(rows)]
    assert tokens[1] == vocab // 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "params",
    [SampleParams(), SampleParams(1.0), SampleParams(1.0, top_p=0.5), SampleParams(1.0, top_k=2)],
)
def test_broken_rows_fail_alone(isa, params):
    logits = random_logits(6, 200)
    logits[1] = -np.inf
    logits[2, 150] = np.nan
    logits[3] = np.nan
    logits[4, 7] = np.inf
    case = Case(logits, [params] * 6, [3] * 6, top=3, isa=isa)
    tokens = case.run()
    assert tokens[1:5].tolist() == [-1] * 4
    assert [tokens[0], tokens[5]] == [case.expected(0), case.expected(5)]
    assert (case.logprob[1:5] == -np.inf).all()
    assert np.isfinite(case.logprob[[0, 5]]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_masked_nan_is_still_an_error(isa):
    logits = random_logits(1, 64)
    logits[0, 3] = np.nan
    mask = np.array([1 << 9], np.uint64)
    address = np.array([mask.ctypes.data], np.uint64)
    case = Case(logits, [SampleParams()], isa=isa)
    case.native.bind(mask=address)
    assert case.run().tolist() == [-1]


@pytest.mark.parametrize("isa", ISAS)
def test_some_minus_infinities_are_never_sampled(isa):
    logits = np.full((200, 90), -np.inf, np.float32)
    logits[:, [5, 80]] = 1.0
    for params in (SampleParams(1.0), SampleParams(1.0, top_p=0.99), SampleParams(1.0, top_k=10)):
        case = Case(logits, [replace(params, seed=s) for s in range(200)], isa=isa)
        assert set(case.run().tolist()) == {5, 80}


def test_rows_may_have_padding():
    logits, rng = random_logits(6, 500), np.random.default_rng(3)
    params = [random_params(rng) for _ in range(6)]
    close, apart = (Case(logits, params, [5] * 6, top=5, gap=gap) for gap in (0, 16))
    assert np.array_equal(close.run(), apart.run())
    assert np.array_equal(close.top_ids, apart.top_ids)
    assert np.array_equal(close.top_logprobs, apart.top_logprobs)
    with pytest.raises(ValueError, match="logits_stride is less than vocab"):
        close.native.add(
            "sample",
            {"logits": close.logits, "token_ids": close.token_ids},
            vocab=500,
            logits_stride=499,
        )


def test_logits_are_not_changed():
    rng = np.random.default_rng(2)
    case = Case(random_logits(20, 300), [random_params(rng) for _ in range(20)], [2] * 20, top=2)
    before = case.logits.copy()
    case.run()
    assert np.array_equal(case.logits, before)
