"""Values of quantized weights; joining, interleaving and cutting never changes one."""

from __future__ import annotations

import numpy as np
import pytest

from galley.quant import QuantizedWeight, concat_rows, interleave_rows

K = 64


def make(kind: str, rows: int, seed: int = 0) -> QuantizedWeight:
    rng = np.random.default_rng(seed)
    if kind == "f32":
        return QuantizedWeight(dense=rng.normal(size=(rows, K)).astype(np.float32))
    if kind == "nf4":
        return QuantizedWeight(
            q=rng.integers(0, 16, (rows, K), dtype=np.uint8),
            bits=4,
            group=32,
            scale=rng.normal(size=(rows, K // 32)).astype(np.float32),
            table=np.linspace(-1, 1, 16, dtype=np.float32),
            activations="as_is",
        )
    if kind in ("zeros", "super"):
        groups = (rows, K // 16)
        two_level = {
            "scale": rng.integers(0, 64, groups, dtype=np.uint8),
            "super_scale": rng.normal(size=(rows, K // 32)).astype(np.float16),
            "min": rng.integers(0, 64, groups, dtype=np.uint8),
            "super_min": rng.normal(size=(rows, K // 32)).astype(np.float16),
        }
        one_level = {
            "scale": rng.normal(size=groups).astype(np.float16),
            "zero": rng.integers(0, 16, groups, dtype=np.uint8),
        }
        q = rng.integers(0, 16, (rows, K), dtype=np.uint8)
        parts = one_level if kind == "zeros" else two_level
        return QuantizedWeight(q=q, bits=4, group=16, **parts)
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


KINDS = ["f32", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k", "channel", "nf4", "zeros", "super"]


@pytest.mark.parametrize("kind", KINDS)
def test_concatenation_puts_parts_below_each_other(kind):
    parts = [make(kind, rows, seed=rows) for rows in (8, 4, 4)]
    joined = concat_rows(parts)
    assert np.array_equal(joined.to_float32(), np.concatenate([p.to_float32() for p in parts]))
    assert joined.format == parts[0].format


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "f32"])
def test_values_follow_the_definition(kind):
    """Number by number, from the formula of the class."""
    u = make(kind, 3)
    values = u.to_float32()
    for n, k in np.ndindex(3, K):
        g = k // (u.group or K)
        f32 = np.float32
        scale, low = f32(u.scale[n, g]), f32(0 if u.min is None else u.min[n, g])
        if u.super_scale is not None:
            s = k // 32
            scale, low = f32(u.super_scale[n, s]) * scale, f32(u.super_min[n, s]) * low
        zero = u.zero if isinstance(u.zero, int) else int(u.zero[n, g])
        level = f32(int(u.q[n, k]) - zero) if u.table is None else u.table[u.q[n, k]]
        assert values[n, k] == scale * level + low


def test_the_last_group_may_be_incomplete():
    u = make("q4_0", 4)
    q, scale = u.q[:, :40], u.scale
    short = QuantizedWeight(q=q, bits=4, group=32, zero=8, scale=scale)
    assert np.array_equal(short.to_float32(), u.to_float32()[:, :40])


def test_parts_of_two_formats_cannot_be_joined():
    with pytest.raises(AssertionError):
        concat_rows([make("q4_0", 4), make("q4_1", 4)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [1, 4])
def test_interleaving_takes_runs_in_turn(kind, run):
    gate, up = make(kind, 8, 1), make(kind, 8, 2)
    interleaved = interleave_rows(gate, up, run).to_float32()
    for i in range(8):
        row = i // run * 2 * run + i % run
        assert np.array_equal(interleaved[row], gate.to_float32()[i])
        assert np.array_equal(interleaved[row + run], up.to_float32()[i])


@pytest.mark.parametrize("kind", KINDS)
def test_slices_along_both_axes(kind):
    u = make(kind, 12)
    whole = u.to_float32()
    assert np.array_equal(u.take(slice(3, 9)).to_float32(), whole[3:9])
    assert np.array_equal(u.columns(32, 64).to_float32(), whole[:, 32:64])


def test_columns_refuse_to_cut_a_group():
    with pytest.raises(ValueError, match="cut through groups of 32"):
        make("q4_0", 4).columns(16, 64)
    assert make("q6_k", 4).columns(16, 64).shape == (4, 48)
