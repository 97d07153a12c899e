"""Variants of Llama-like configs against Hugging Face transformers, reference backend."""

from __future__ import annotations

import numpy as np
import pytest

from galley.kernels.reference import ReferenceBackend
from tests.models.checkpoints import CASES, StateDict, hf_logits, make
from tests.models.driver import LIMITS, Driver, load, solo_logits

LENGTH = 75


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    model = make(CASES[request.param])
    backend = ReferenceBackend()
    ids = np.random.default_rng(1).integers(0, 131, LENGTH)
    executable = backend.build(load(StateDict(model), backend), LIMITS)
    return executable, ids, hf_logits(model, ids)


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(
    "chunks",
    [[LENGTH], [13, 1, 30, 16, 15], [40] + [1] * 35],
    ids=["one prefill", "chunks", "prefill and decode"],
)
def test_logits_equal_transformers(case, chunks):
    executable, ids, want = case
    assert_close(solo_logits(executable, ids, chunks), want)


def test_rows_of_a_batch_are_independent(case):
    executable, ids, want = case
    driver = Driver(executable, block_size=32)
    driver.put(5, ids)
    driver.put(0, ids[:40])
    driver.put(2, ids)
    first = driver.step({5: 20, 0: 39})
    second = driver.step({2: 75, 0: 1, 5: 55})
    assert_close(np.concatenate([first[:20], second[76:]]), want)
    assert_close(np.concatenate([first[20:], second[75:76]]), want[:40])
    assert_close(second[:75], want)
