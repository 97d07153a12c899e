"""Joining, interleaving and cutting unpacked weights never changes a value."""

from __future__ import annotations

import numpy as np
import pytest

from galley.quant import QuantizedWeight, concat_rows, interleave_rows

K = 64


def make(kind: str, rows: int, seed: int = 0) -> QuantizedWeight:
    rng = np.random.default_rng(seed)
    if kind == "f32":
        return QuantizedWeight(dense=rng.normal(size=(rows, K)).astype(np.float32))
    bits, group, zero, dtype, has_min = {
        "q4_0": (4, 32, 8, np.float16, False),
        "q4_1": (4, 32, 0, np.float16, True),
        "q5_0": (8, 32, 16, np.float16, False),
        "q8_0": (8, 32, 128, np.float16, False),
        "q4_k": (4, 32, 0, np.float32, True),
        "q6_k": (8, 16, 32, np.float32, False),
        "channel": (8, K, 128, np.float32, False),
    }[kind]
    top = {8: 15, 0: 15, 16: 31, 128: 255, 32: 63}[zero]
    shape = (rows, K // group)
    return QuantizedWeight(
        q=rng.integers(0, top + 1, (rows, K), dtype=np.uint8),
        bits=bits,
        group=group,
        zero=zero,
        scale=rng.normal(size=shape).astype(dtype),
        min=rng.normal(size=shape).astype(dtype) if has_min else None,
    )


KINDS = ["f32", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k", "channel"]


@pytest.mark.parametrize("kind", KINDS)
def test_concatenation_puts_parts_below_each_other(kind):
    parts = [make(kind, rows, seed=rows) for rows in (8, 4, 4)]
    joined = concat_rows(parts)
    assert np.array_equal(joined.to_float32(), np.concatenate([p.to_float32() for p in parts]))
    assert joined.format == parts[0].format


def test_parts_of_two_formats_cannot_be_joined():
    with pytest.raises(AssertionError):
        concat_rows([make("q4_0", 4), make("q4_1", 4)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [1, 4])
def test_interleaving_takes_runs_in_turn(kind, run):
    gate, up = make(kind, 8, 1), make(kind, 8, 2)
    woven = interleave_rows(gate, up, run).to_float32()
    for i in range(8):
        at = i // run * 2 * run + i % run
        assert np.array_equal(woven[at], gate.to_float32()[i])
        assert np.array_equal(woven[at + run], up.to_float32()[i])


@pytest.mark.parametrize("kind", KINDS)
def test_slices_along_both_axes(kind):
    u = make(kind, 12)
    whole = u.to_float32()
    assert np.array_equal(u.rows(3, 9).to_float32(), whole[3:9])
    if kind == "channel":
        with pytest.raises(ValueError, match="cut through groups of 64"):
            u.columns(0, 32)
    else:
        assert np.array_equal(u.columns(32, 64).to_float32(), whole[:, 32:64])


def test_columns_refuse_to_cut_a_group():
    with pytest.raises(ValueError, match="cut through groups of 32"):
        make("q4_0", 4).columns(16, 64)
    assert make("q6_k", 4).columns(16, 64).shape == (4, 48)
