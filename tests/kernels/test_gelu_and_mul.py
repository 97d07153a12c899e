"""gelu_and_mul: the formula, extreme values, stored kinds, and a model on both backends."""

from __future__ import annotations

import numpy as np
import pytest

from galley.kernels import _native
from galley.kernels.cpu import CpuBackend
from galley.kernels.quantized import QuantizedWeight
from galley.kernels.reference import ReferenceBackend
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
from tests.models.driver import LIMITS, solo_logits


def gelu_and_mul(x, n, isa, kind=F32, interleaved=0, threads=1):
    out = aligned((len(x), n), kind_dtype(kind))
    with use_isa(isa):
        native = Native(max_len=max(16, len(x)), threads=threads)
        arrays = {"x": np.ascontiguousarray(x), "out": out}
        native.add("gelu_and_mul", arrays, n=n, out_kind=kind, interleaved=interleaved)
        native.run([len(x)])
    return out


def data(rows, n):
    return (np.random.default_rng(n).standard_normal((rows, 2 * n)) * 3).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [3, 16, 24, 100])
def test_equals_the_formula(isa, n):
    x = data(7, n)
    gate, up = x[:, :n].astype(np.float64), x[:, n:]
    tanh = np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))
    np.testing.assert_allclose(
        gelu_and_mul(x, n, isa), gate / 2 * (1 + tanh) * up, rtol=2e-5, atol=1e-6
    )
    assert np.array_equal(gelu_and_mul(x, n, isa, threads=2)[3:4], gelu_and_mul(x[3:4], n, isa))


@pytest.mark.parametrize("isa", ISAS)
def test_interleaved_equals_halves(isa):
    n = 48
    x = data(5, n)
    runs = x.reshape(5, 2, n // 16, 16).transpose(0, 2, 1, 3).reshape(5, 2 * n)
    assert np.array_equal(gelu_and_mul(runs, n, isa, interleaved=1), gelu_and_mul(x, n, isa))


@pytest.mark.parametrize("isa", ISAS)
def test_extreme_values(isa):
    gate = np.array([-1e30, -200, -20, 0, 20, 200, 1e12, np.nan], np.float32)
    out = gelu_and_mul(np.concatenate([gate, np.ones_like(gate)])[None], len(gate), isa)[0]
    np.testing.assert_allclose(out[:3], 0, atol=1e-34)
    assert np.array_equal(out[3:7], gate[3:7])
    assert np.isnan(out[7])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [BF16, Q8, Q8_ROW, Q16])
def test_other_kinds_are_f32_then_quantize(isa, kind):
    n, x = 96, data(5, 96)
    row_bytes = _native.activation_bytes(kind, n)
    fused, apart = aligned((5, row_bytes), np.uint8), aligned((5, row_bytes), np.uint8)
    wide = aligned((5, n), np.float32)
    with use_isa(isa):
        native = Native()
        native.add("gelu_and_mul", {"x": x, "out": fused}, n=n, out_kind=kind)
        native.add("gelu_and_mul", {"x": x, "out": wide}, n=n, out_kind=F32)
        native.add("quantize", {"x": wide, "out": apart}, k=n, out_kind=kind)
        native.run([5])
    assert fused.any()
    assert np.array_equal(fused, apart)


class FeedForward:
    """Embedding, gated feed-forward block, head."""

    vocab_size = 64
    kv_layers = ()

    def __init__(self, backend, interleaved):
        rng = np.random.default_rng(2)
        self.interleaved = interleaved
        self.embedding, self.gate_up, self.head = (
            backend.weight(QuantizedWeight(dense=rng.standard_normal(shape).astype(np.float32) / 4))
            for shape in ((64, 32), (96, 32), (64, 48))
        )

    def embed(self, ops, ctx):
        return ops.embedding(self.embedding, ctx.token_ids)

    def forward(self, ops, h, ctx):
        return ops.gelu_and_mul(ops.linear(h, [self.gate_up]), self.interleaved)

    def logits(self, ops, h, ctx):
        return ops.linear(ops.select_rows(h, ctx.logit_index), [self.head])


@pytest.mark.parametrize("interleaved", [False, True])
def test_native_equals_the_reference(interleaved):
    ids = np.arange(20)
    got, want = (
        solo_logits(backend.build(FeedForward(backend, interleaved), LIMITS), ids, [20])
        for backend in (CpuBackend("f32", threads=1), ReferenceBackend())
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
