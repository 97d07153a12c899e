"""elementwise: each function against its definition, extreme values, stored kinds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from galley.kernels import _native
from galley.kernels.ops import Ops
from galley.kernels.ops.elementwise import FUNCTIONS
from galley.kernels.reference import ReferenceOps
from tests.kernels.activation_rows import quantized
from tests.kernels.native_harness import F32, ISAS, Q8, Q8_ROW, Native, aligned, use_isa

#: Limit of clip.
CLIP = 1.75
#: alpha_p and alpha_n before softplus, beta, eps.
XIELU = np.array([0.55, -0.3, 0.5, -1e-6], np.float32)


def parameters_of(function):
    return {"parameters": XIELU} if function == "xielu" else {}


def limit_of(function):
    return {"limit": CLIP} if function == "clip" else {}


def elementwise(x, function, isa, kind=F32, threads=1):
    rows, n = x.shape
    out = aligned((rows, _native.activation_bytes(kind, n)), np.uint8)
    with use_isa(isa):
        native = Native(max_len=max(16, rows), threads=threads)
        arrays = {"x": x, "out": out, **parameters_of(function)}
        numbers = {"n": n, "out_kind": kind, "function": FUNCTIONS.index(function)}
        native.add("elementwise", arrays, **numbers, **limit_of(function))
        native.run([rows])
    return out.view(np.float32) if kind == F32 else out


def softplus(x):
    return math.log1p(math.exp(x))


def xielu(x):
    alpha_p, alpha_n, beta, eps = (float(p) for p in XIELU)
    if x > 0:
        return softplus(alpha_p) * x * x + beta * x
    return (math.expm1(min(x, eps)) - x) * (beta + softplus(alpha_n)) + beta * x


FORMULAS = {
    "gelu": lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "xielu": xielu,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "clip": lambda x: max(-CLIP, min(x, CLIP)),
}
#: Values at 0 and far below it, where they are not 0.
LIMITS = {"sigmoid": (0.5, 0.0), "tanh": (0.0, -1.0), "clip": (0.0, -CLIP)}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_equals_the_formula(isa, function):
    x = np.linspace(-9, 9, 7 * 99, dtype=np.float32).reshape(7, 99)
    want = np.vectorize(FORMULAS[function])(x.astype(np.float64))
    np.testing.assert_allclose(elementwise(x, function, isa), want, rtol=2e-6, atol=1e-6)
    row = elementwise(x[3:4].copy(), function, isa)
    assert np.array_equal(elementwise(x, function, isa, threads=2)[3:4], row)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_reference_equals_the_formula(function):
    x = np.linspace(-9, 9, 100, dtype=np.float32)[None]
    parameters = [torch.from_numpy(p) for p in parameters_of(function).values()]
    got = Ops(ReferenceOps()).elementwise(
        torch.from_numpy(x), function, *parameters, **limit_of(function)
    )
    want = np.vectorize(FORMULAS[function])(x.astype(np.float64))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_extreme_values(isa, function):
    x = np.array([[-1e5, -200, 0, 200, 1e5, np.nan]], np.float32)
    out = elementwise(x, function, isa)[0]
    assert np.isfinite(out[:5]).all()
    at_zero, below = LIMITS.get(function, (0.0, 0.0))
    assert abs(out[2] - at_zero) <= (2e-6 if function == "xielu" else 0)
    assert np.isnan(out[5])
    if function != "xielu":
        np.testing.assert_allclose(out[:2], below, atol=1e-30)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [Q8, Q8_ROW])
def test_other_kinds_are_f32_then_quantize(isa, kind):
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    fused = elementwise(x, "gelu", isa, kind)
    wide = elementwise(x, "gelu", isa)
    with use_isa(isa):
        apart = quantized(wide, kind)
    assert fused.any()
    assert np.array_equal(fused, apart)


def test_xielu_needs_parameters():
    x = np.zeros((1, 8), np.float32)
    with pytest.raises(ValueError, match="xielu needs parameters"):
        Native().add("elementwise", {"x": x, "out": x}, n=8, function=FUNCTIONS.index("xielu"))
