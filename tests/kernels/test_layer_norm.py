"""layer_norm against its formula in float64; rows do not depend on their batch."""

from __future__ import annotations

import numpy as np
import pytest

from galley.kernels import _native
from tests.kernels.activation_rows import quantized
from tests.kernels.native_harness import (
    BF16,
    F32,
    ISAS,
    Q8,
    Q8_ROW,
    Q16,
    Native,
    aligned,
    use_isa,
)

EPS = 1e-5


def layer_norm(
    x, weight=None, bias=None, add=None, kind=F32, isa=ISAS[-1], threads=1, rounded=None, **ints
):
    rows, width = x.shape
    x = x.copy()
    out = aligned((rows, _native.activation_bytes(kind, width)), np.uint8)
    given = {"x": x, "weight": weight, "bias": bias, "add": add, "out": out, "rounded": rounded}
    arrays = {name: array for name, array in given.items() if array is not None}
    with use_isa(isa):
        native = Native(max_len=max(rows, 16), threads=threads)
        native.add("layer_norm", arrays, **{"n": width, "out_kind": kind, "eps": EPS, **ints})
        native.run([rows])
    return (out.view(np.float32) if kind == F32 else out), x


def data(rows, n, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, n)) * 3 + 2).astype(np.float32)
    return x, *(rng.standard_normal(n).astype(np.float32) for _ in range(2))


def exact(x, weight, bias):
    x = x.astype(np.float64)
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * weight + bias


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [2, 16, 31, 64, 100, 576])
def test_equals_the_formula(isa, n):
    x, weight, bias = data(5, n)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    for w, b in ((weight, bias), (weight, None), (None, None)):
        out, _ = layer_norm(x, w, b, isa=isa)
        want = exact(x, 1 if w is None else w, 0 if b is None else b)
        np.testing.assert_allclose(out, want, **tolerance)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("per_head", [0, 1])
def test_heads_are_normalised_by_themselves(isa, per_head):
    x, weight, bias = data(4, 60)
    size = 60 if per_head else 20
    weight, bias = weight[:size].copy(), bias[:size].copy()
    out, _ = layer_norm(x, weight, bias, isa=isa, n=20, heads=3, per_head=per_head)
    heads = x.reshape(4, 3, 20)
    want = exact(heads, weight.reshape(-1, 20), bias.reshape(-1, 20)).reshape(4, 60)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_row_alone_equals_row_in_batch_and_fused_add_is_add_then_norm(isa):
    x, weight, bias = data(13, 100)
    batch, _ = layer_norm(x, weight, bias, isa=isa, threads=2)
    for i in range(len(x)):
        assert np.array_equal(batch[i], layer_norm(x[i : i + 1], weight, bias, isa=isa)[0][0])
    y = data(13, 100, seed=1)[0]
    fused, residual = layer_norm(x, weight, bias, add=y, isa=isa)
    assert np.array_equal(residual, x + y)
    assert np.array_equal(fused, layer_norm(x + y, weight, bias, isa=isa)[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [BF16, Q8, Q16])
def test_other_kinds_are_f32_then_quantize(isa, kind):
    x, weight, bias = data(5, 100)
    fused, _ = layer_norm(x, weight, bias, kind=kind, isa=isa)
    wide, _ = layer_norm(x, weight, bias, isa=isa)
    with use_isa(isa):
        apart = quantized(wide, kind)
    assert fused.any()
    assert np.array_equal(fused, apart)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [BF16, Q8, Q8_ROW])
def test_rounded_rows_beside_those_of_f32(isa, kind):
    x, weight, bias = data(13, 100)
    rounded = aligned((13, _native.activation_bytes(kind, 100)), np.uint8)
    given = {"rounded": rounded, "rounded_kind": kind}
    out, _ = layer_norm(x, weight, bias, isa=isa, threads=2, **given)
    assert np.array_equal(out, layer_norm(x, weight, bias, isa=isa)[0])
    with use_isa(isa):
        assert np.array_equal(rounded, quantized(out, kind))


def test_nan_stays_in_its_row():
    x, weight, bias = data(6, 48)
    clean, _ = layer_norm(x, weight, bias)
    x[2, 5] = np.nan
    out, _ = layer_norm(x, weight, bias)
    assert np.isnan(out[2]).all()
    assert np.array_equal(np.delete(out, 2, axis=0), np.delete(clean, 2, axis=0))
