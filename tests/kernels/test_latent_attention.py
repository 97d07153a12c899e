"""Attention over a latent cache against the definition, and equal bits however it is cut."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.native_harness import BF16, F32, ISAS, Native, aligned, use_isa

#: More than a chunk of 512 tokens, of which the last page is not full.
LENGTH, RANK, ROPE, HEADS, SCALE = 571, 48, 16, 5, 0.2
DIM = RANK + ROPE
DTYPES = {F32: np.float32, BF16: ml_dtypes.bfloat16}


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


LATENT, PART = numbers(LENGTH, RANK, seed=1), numbers(LENGTH, ROPE, seed=2)
Q, Q_ROPE = numbers(LENGTH, HEADS * RANK, seed=3), numbers(LENGTH, HEADS * ROPE, seed=4)


def run(kind: int, chunks: list[int], threads: int = 1) -> np.ndarray:
    """[LENGTH, HEADS * RANK]: the outputs of a sequence in slot 1, beside one in slot 0."""
    native = Native(slots=2, max_len=LENGTH + 5, threads=threads)
    dtype = DTYPES[kind]
    item = np.dtype(dtype).itemsize
    stride = native.block_size * DIM * item
    rows = LENGTH + 2
    arrays = {
        "latent": aligned((rows, RANK), np.float32),
        "rope": aligned((rows, ROPE), np.float32),
        "q": aligned((rows, HEADS * RANK), dtype),
        "q_rope": aligned((rows, HEADS * ROPE), dtype),
        "out": aligned((rows, HEADS * RANK), np.float32),
        "kv": aligned((native.num_blocks * stride,), np.uint8),
    }
    # Memory that was never written may hold anything.
    arrays["kv"][:] = 0xFF
    cache = {"kv_heads": 1, "head_dim": DIM, "kv_kind": int(kind), "kv_block_stride": stride}
    native.add(
        "write_latent", {n: arrays[n] for n in ("latent", "rope", "kv")}, latent_dim=RANK, **cache
    )
    native.add(
        "attention",
        {n: arrays[n] for n in ("q", "q_rope", "kv", "out")},
        heads=HEADS,
        value_dim=RANK,
        q_kind=int(kind),
        out_kind=int(F32),
        scale=SCALE,
        **cache,
    )
    outputs, done = [], 0
    for n in chunks:
        sources = {"latent": LATENT, "rope": PART, "q": Q, "q_rope": Q_ROPE}
        for name, source in sources.items():
            arrays[name][2 : 2 + n] = source[done : done + n]
            arrays[name][:2] = source[7:9]
        native.run([2, n], slots=[0, 1])
        outputs.append(arrays["out"][2 : 2 + n].copy())
        done += n
        native.num_computed[1] = done
    return np.concatenate(outputs)


def expected(kind: int) -> np.ndarray:
    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(DTYPES[kind]).astype(np.float64)

    keys = np.concatenate([rounded(LATENT), rounded(PART)], axis=1)
    q = np.concatenate(
        [rounded(Q).reshape(LENGTH, HEADS, RANK), rounded(Q_ROPE).reshape(LENGTH, HEADS, ROPE)], 2
    )
    scores = np.einsum("thd,sd->hts", q, keys) * SCALE
    scores[:, np.arange(LENGTH)[:, None] < np.arange(LENGTH)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hts,sd->thd", weights, keys[:, :RANK]).reshape(LENGTH, -1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("kind", "tolerance"), [(F32, 1e-5), (BF16, 1e-2)])
def test_equals_the_definition_in_any_chunks(isa, kind, tolerance):
    with use_isa(isa):
        whole = run(kind, [LENGTH])
        assert np.abs(whole - expected(kind)).max() <= tolerance
        for chunks in ([1, 511, 1, 1, 57], [500, 30, *[1] * 41]):
            assert np.array_equal(run(kind, chunks), whole)
    assert np.array_equal(run(kind, [300, LENGTH - 300], threads=2), run(kind, [LENGTH]))
