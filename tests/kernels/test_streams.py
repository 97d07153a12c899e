"""mix, match_size and sparsify: each against its definition, alone and with other rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galley.kernels.ops import Ops
from galley.kernels.reference import ReferenceOps
from tests.kernels.native_harness import Native, aligned

ROWS, N = 7, 24
RNG = np.random.default_rng(0)
X = RNG.standard_normal((ROWS, 3 * N)).astype(np.float32)
LIKE = RNG.standard_normal((ROWS, N)).astype(np.float32)
COEFS = RNG.standard_normal((ROWS, 6)).astype(np.float32)


def native(name, arrays, columns, **numbers):
    rows = next(iter(arrays.values())).shape[0]
    out = aligned((rows, columns), np.float32)
    program = Native(max_len=16, threads=2)
    program.add(name, {**arrays, "out": out}, **numbers)
    program.run([rows])
    return out


def reference(name, *arguments):
    tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
    return getattr(Ops(ReferenceOps()), name)(*tensors).numpy()


@pytest.mark.parametrize("constant", [False, True])
def test_mix(constant):
    coefs = COEFS[0].copy() if constant else COEFS
    numbers = {"n": N, "ins": 3, "outs": 2, "constant": int(constant)}
    got = native("mix", {"x": X, "coefs": coefs}, 2 * N, **numbers)
    of_rows = np.broadcast_to(coefs, (ROWS, 6)).reshape(ROWS, 2, 3)
    want = np.einsum("tos,tsn->ton", of_rows, X.reshape(ROWS, 3, N)).reshape(ROWS, 2 * N)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(reference("mix", X, coefs, 3, 2), want, rtol=1e-5, atol=1e-5)
    row = {"x": X[3:4].copy(), "coefs": coefs if constant else COEFS[3:4].copy()}
    assert np.array_equal(native("mix", row, 2 * N, **numbers), got[3:4])


def test_match_size():
    x = X.copy()
    x[0] = 1e-9  # whose size is not divided by
    numbers = {"n": N, "parts": 3, "like_stride": N, "least": 1e-5}
    got = native("match_size", {"x": x, "like": LIKE}, 3 * N, **numbers)
    np.testing.assert_allclose(reference("match_size", x, LIKE), got, rtol=1e-5)
    sizes = np.sqrt(np.square(got.reshape(ROWS, 3, N)).mean(-1))
    wanted = np.sqrt(np.square(LIKE).mean(-1))[:, None].repeat(3, 1)
    np.testing.assert_allclose(sizes[1:], wanted[1:], rtol=1e-5)
    assert (got[0] < 1e-6).all()


def test_sparsify_reads_some_columns():
    got = native("sparsify", {"x": X}, N, n=N, x_stride=3 * N, deviations=0.5)
    part = X[:, :N].copy()
    cut = part.mean(1, keepdims=True) + 0.5 * part.std(1, keepdims=True)
    np.testing.assert_allclose(got, np.maximum(part - cut, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reference("sparsify", part, 0.5), got, rtol=1e-5, atol=1e-6)
    assert 0 < (got > 0).mean() < 0.5
