"""silu_and_mul, add, gate, scale, soft_cap and select_rows."""

import math

import numpy as np
import pytest

from galley.kernels import _native
from galley.kernels.ops.gate import FUNCTIONS
from tests.kernels import activation_rows
from tests.kernels.native_harness import (
    BF16,
    F32,
    ISAS,
    Q8,
    Q8_ROW,
    Q16,
    Native,
    aligned,
    kind_dtype,
    use_isa,
)


def silu_and_mul(x, n, isa, kind=F32, interleaved=0, threads=1):
    rows = len(x)
    out = aligned((rows, n), kind_dtype(kind))
    with use_isa(isa):
        native = Native(max_len=max(16, rows), threads=threads)
        native.add(
            "silu_and_mul", {"x": x, "out": out}, n=n, out_kind=kind, interleaved=interleaved
        )
        native.run([rows])
    return out


def data(rows, n, scale=4.0):
    rng = np.random.default_rng(n)
    return (rng.standard_normal((rows, 2 * n)) * scale).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [3, 16, 24, 100, 1536])
def test_silu_mul_equals_the_formula(isa, n):
    x = data(3, n)
    gate, up = x[:, :n].astype(np.float64), x[:, n:]
    np.testing.assert_allclose(silu_and_mul(x, n, isa), gate / (1 + np.exp(-gate)) * up, rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_silu_of_extreme_values(isa):
    inf = np.float32(np.inf)
    gate = np.array([-inf, -1e30, -200, -87.5, -88.6, 0, 88.6, 200, 1e30, np.nan], np.float32)
    x = np.concatenate([gate, np.ones_like(gate)])[None]
    out = silu_and_mul(x, len(gate), isa)[0]
    assert np.isnan(out[[0, 9]]).all()  # -inf * sigmoid(-inf) = -inf * 0
    np.testing.assert_allclose(out[1:5], 0, atol=1e-34)
    assert np.array_equal(out[5:9], gate[5:9])


@pytest.mark.parametrize("isa", ISAS)
def test_interleaved_equals_halves(isa):
    n = 48
    x = data(5, n)
    interleaved_x = x.reshape(5, 2, n // 16, 16).transpose(0, 2, 1, 3).reshape(5, 2 * n).copy()
    assert np.array_equal(
        silu_and_mul(interleaved_x, n, isa, interleaved=1), silu_and_mul(x, n, isa)
    )


@pytest.mark.parametrize("isa", ISAS)
def test_element_does_not_depend_on_its_place(isa):
    x = data(1, 39)
    whole = silu_and_mul(x, 39, isa)
    for i in [0, 15, 16, 33, 38]:
        alone = silu_and_mul(np.ascontiguousarray(x[:, [i, 39 + i]]), 1, isa)
        assert alone[0, 0] == whole[0, i]
    batch = silu_and_mul(np.repeat(x, 9, axis=0), 39, isa, threads=2)
    assert (batch == whole).all()


@pytest.mark.parametrize("isa", ISAS)
def test_bf16_out_is_f32_out_rounded(isa):
    x = data(4, 40)
    assert np.array_equal(
        silu_and_mul(x, 40, isa, kind=BF16), silu_and_mul(x, 40, isa).astype(kind_dtype(BF16))
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [Q8, Q8_ROW, Q16])
def test_integers_out_are_f32_out_quantised(isa, kind):
    x = data(4, 40)
    out = aligned((4, _native.activation_bytes(kind, 40)), np.uint8)
    with use_isa(isa):
        native = Native()
        native.add("silu_and_mul", {"x": x, "out": out}, n=40, out_kind=kind)
        native.run([4])
        assert np.array_equal(out, activation_rows.quantized(silu_and_mul(x, 40, isa), kind))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 6])
def test_add(isa, rows):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((rows, 37)).astype(np.float32) for _ in range(2))
    expected = x + y
    with use_isa(isa):
        native = Native(threads=2)
        native.add("add", {"x": x, "y": y}, n=37)
        native.run([rows])
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("one", [False, True])
def test_scale(isa, one):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 40)).astype(np.float32)
    factor = rng.standard_normal(1 if one else 40).astype(np.float32)
    out, rounded = aligned((6, 40), np.float32), aligned((6, 40), kind_dtype(BF16))
    with use_isa(isa):
        native = Native(threads=2)
        arrays = {"x": x, "factor": factor}
        native.add("scale", {**arrays, "out": out}, n=40, one=int(one), out_kind=F32)
        native.add("scale", {**arrays, "out": rounded}, n=40, one=int(one), out_kind=BF16)
        native.run([6])
    assert np.array_equal(out, x * factor)
    assert np.array_equal(rounded, out.astype(kind_dtype(BF16)))


GATES = {
    "silu": lambda g: g / (1 + np.exp(-g)),
    "sigmoid": lambda g: 1 / (1 + np.exp(-g)),
    "gelu": lambda g: g / 2 * (1 + np.vectorize(math.erf)(g / 2**0.5)),
    "identity": lambda g: g,
    "gelu_tanh": lambda g: g / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (g + 0.044715 * g**3))),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gate(isa, function):
    rng = np.random.default_rng(0)
    x, gate = (rng.standard_normal((5, n)).astype(np.float32) for n in (100, 60))
    out, rounded = aligned((5, 40), np.float32), aligned((5, 40), kind_dtype(BF16))
    numbers = {"n": 40, "function": FUNCTIONS.index(function), "scale": 0.7}
    numbers |= {"x_stride": 100, "gate_stride": 60}
    with use_isa(isa):
        native = Native(threads=2)
        native.add("gate", {"x": x, "gate": gate, "out": out}, **numbers, out_kind=F32)
        native.add("gate", {"x": x, "gate": gate, "out": rounded}, **numbers, out_kind=BF16)
        native.run([5])
    factor = GATES[function](gate[:, :40].astype(np.float64) * np.float32(0.7))
    np.testing.assert_allclose(out, x[:, :40] * factor, rtol=2e-5, atol=1e-6)
    assert np.array_equal(rounded, out.astype(kind_dtype(BF16)))


@pytest.mark.parametrize("isa", ISAS)
def test_soft_cap(isa):
    x = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32) * 40
    x[0, :8] = [0, 1e-6, -1e-6, 0.5, 1e30, -1e30, np.inf, -np.inf]
    want = 30 * np.tanh(x[:, :37].astype(np.float64) / 30)
    rest = x[:, 37:].copy()
    with use_isa(isa):
        native = Native(threads=2)
        native.add("soft_cap", {"out": x}, n=37, out_stride=50, cap=30.0)
        native.run([3])
    np.testing.assert_allclose(x[:, :37], want, rtol=1e-6)
    assert np.array_equal(x[:, 37:], rest)


def test_select_rows_takes_the_last_positions_of_each_row():
    x = np.arange(10 * 3, dtype=np.float32).reshape(10, 3)
    out = aligned((4, 3), np.float32)
    native = Native(slots=3)
    native.add("select_rows", {"x": x, "out": out}, n=3)
    native.run([5, 1, 4], num_logits=[1, 1, 2])
    assert np.array_equal(out, x[[4, 5, 8, 9]])


@pytest.mark.parametrize(
    ("op", "numbers"),
    [
        ("silu_and_mul", {"n": 24, "interleaved": 1}),
        ("silu_and_mul", {"n": 0}),
        ("silu_and_mul", {"n": 8, "out_kind": 7}),
        ("soft_cap", {"n": 8, "cap": 0.0}),
        ("soft_cap", {"n": 8, "cap": 1.0, "out_stride": 4}),
    ],
)
def test_bad_arguments_are_refused(op, numbers):
    x = np.zeros((1, 64), np.float32)
    with pytest.raises(ValueError, match=op):
        Native().add(op, {"x": x, "out": x}, **numbers)
