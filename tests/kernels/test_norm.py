"""rms_norm against its formula in float64; rows do not depend on their batch."""

import numpy as np
import pytest

from galley.kernels import _native
from tests.kernels.native_harness import (
    BF16,
    F32,
    ISAS,
    Q8,
    Q16,
    Native,
    aligned,
    kind_dtype,
    use_isa,
)

SIZES = [2, 8, 16, 31, 48, 64, 100, 576, 960]
EPS = 1e-5


def rms_norm(x, weight, add=None, kind=F32, isa=ISAS[-1], threads=1):
    rows, n = x.shape
    x, weight = x.copy(), np.ascontiguousarray(weight)
    out = aligned(x.shape, kind_dtype(kind))
    with use_isa(isa):
        native = Native(max_len=max(rows, 16), threads=threads)
        arrays = {"x": x, "weight": weight, "out": out}
        if add is not None:
            arrays["add"] = add.copy()
        native.add("rms_norm", arrays, n=n, out_kind=kind, eps=EPS)
        native.run([rows])
    return out, x


def data(rows, n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, n)).astype(np.float32) * 3
    return x, rng.standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_equals_the_formula(isa, n):
    x, weight = data(5, n)
    out, _ = rms_norm(x, weight, isa=isa)
    exact = x.astype(np.float64)
    exact = exact / np.sqrt(np.mean(exact**2, axis=1, keepdims=True) + EPS) * weight
    np.testing.assert_allclose(out, exact, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_fused_add_is_add_then_norm(isa):
    x, weight = data(7, 100)
    y, _ = data(7, 100, seed=1)
    fused, residual = rms_norm(x, weight, add=y, isa=isa)
    apart, _ = rms_norm(x + y, weight, isa=isa)
    assert np.array_equal(residual, x + y)
    assert np.array_equal(fused, apart)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [48, 100])
def test_row_alone_equals_row_in_batch(isa, n):
    x, weight = data(13, n)
    batch, _ = rms_norm(x, weight, isa=isa, threads=2)
    for i in range(len(x)):
        alone, _ = rms_norm(x[i : i + 1], weight, isa=isa)
        assert np.array_equal(batch[i], alone[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [F32, BF16, Q8])
def test_heads_of_a_column_range_are_rows_by_themselves(isa, kind):
    """Three heads of 20 columns out of rows of 100."""
    x, weight = data(5, 100)
    weight = weight[:20].copy()
    heads = np.ascontiguousarray(x[:, 8:68].reshape(15, 20))
    expected = aligned((15, 20), np.float32)
    rounded = aligned((5, _native.activation_bytes(kind, 60)), np.uint8)
    got = aligned(rounded.shape, np.uint8)
    with use_isa(isa):
        native = Native(max_len=16)
        rows = {"x": heads, "weight": weight, "out": expected}
        native.add("rms_norm", rows, n=20, eps=EPS)
        native.run([15])
        native = Native(max_len=16)
        native.add("quantize", {"x": expected, "out": rounded}, k=60, out_kind=kind)
        ranges = {"x": x.reshape(-1)[8:], "weight": weight, "out": got}
        native.add("rms_norm", ranges, n=20, heads=3, x_stride=100, out_kind=kind, eps=EPS)
        native.run([5])
    assert rounded.any()
    assert np.array_equal(got, rounded)


def test_bad_sizes_are_refused():
    x = np.zeros(64, np.float32)
    for wrong in ({"heads": 0}, {"x_stride": 31}, {"n": 0}):
        numbers = {"n": 16, "heads": 2, "eps": EPS, **wrong}
        with pytest.raises(ValueError, match="rms_norm: "):
            Native().add("rms_norm", {"x": x, "weight": x, "out": x}, **numbers)


@pytest.mark.parametrize("isa", ISAS)
def test_bf16_out_is_f32_out_rounded(isa):
    x, weight = data(5, 100)
    exact, _ = rms_norm(x, weight, isa=isa)
    rounded, _ = rms_norm(x, weight, kind=BF16, isa=isa)
    assert np.array_equal(rounded, exact.astype(kind_dtype(BF16)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [64, 100])
@pytest.mark.parametrize("kind", [Q8, Q16])
def test_integers_out_are_norm_then_quantize(isa, n, kind):
    x, weight = data(5, n)
    row_bytes = _native.activation_bytes(kind, n)
    fused, apart = aligned((5, row_bytes), np.uint8), aligned((5, row_bytes), np.uint8)
    normed = aligned((5, n), np.float32)
    with use_isa(isa):
        native = Native()
        arrays = {"x": x, "weight": weight}
        native.add("rms_norm", {**arrays, "out": fused}, n=n, out_kind=kind, eps=EPS)
        native.add("rms_norm", {**arrays, "out": normed}, n=n, out_kind=F32, eps=EPS)
        native.add("quantize", {"x": normed, "out": apart}, k=n, out_kind=kind)
        native.run([5])
    assert fused.any()
    assert np.array_equal(fused, apart)


def test_nan_stays_in_its_row():
    x, weight = data(6, 48)
    clean, _ = rms_norm(x, weight)
    x[2, 5] = np.nan
    out, _ = rms_norm(x, weight)
    assert np.isnan(out[2]).all()
    assert np.array_equal(np.delete(out, 2, axis=0), np.delete(clean, 2, axis=0))
