"""Attention over a latent cache against the definition, and equal bits however it is cut."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.native_harness import BF16, F32, TILE_ISAS, Native, aligned, use_isa

SCALE = 0.2
DTYPES = {F32: np.float32, BF16: ml_dtypes.bfloat16}


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Case:
    """A sequence of some length, and the sizes of its latents and heads."""

    def __init__(self, length: int, rank: int, rope: int, heads: int) -> None:
        self.length, self.rank, self.rope, self.heads = length, rank, rope, heads
        self.latent, self.part = numbers(length, rank, seed=1), numbers(length, rope, seed=2)
        self.q = numbers(length, heads * rank, seed=3)
        self.q_rope = numbers(length, heads * rope, seed=4)


#: Keys of whole tiles of AMX, but not of whole pairs of them.
HALF_TILES = Case(150, 48, 16, 5)
#: A tile's keys are larger than the L1 cache, and there are more heads than a block has rows.
LONG_KEYS = Case(150, 276, 32, 9)
#: Whole tiles of AMX, more heads than rows; beyond a chunk of 512 tokens, with a last page that is
#: not full.
WHOLE_TILES = Case(571, 64, 32, 20)


def run(case: Case, kind: int, chunks: list[int], threads: int = 1) -> np.ndarray:
    """[length, heads * rank]: the outputs of a sequence in slot 1, beside one in slot 0."""
    dim = case.rank + case.rope
    native = Native(slots=2, max_len=case.length + 5, threads=threads)
    dtype = DTYPES[kind]
    item = np.dtype(dtype).itemsize
    stride = native.block_size * dim * item
    rows = case.length + 2
    arrays = {
        "latent": aligned((rows, case.rank), np.float32),
        "rope": aligned((rows, case.rope), np.float32),
        "q": aligned((rows, case.heads * case.rank), dtype),
        "q_rope": aligned((rows, case.heads * case.rope), dtype),
        "out": aligned((rows, case.heads * case.rank), np.float32),
        "kv": aligned((native.num_blocks * stride,), np.uint8),
    }
    # Memory that was never written may hold anything.
    arrays["kv"][:] = 0xFF
    cache = {"kv_heads": 1, "head_dim": dim, "kv_kind": int(kind), "kv_block_stride": stride}
    native.add(
        "write_latent",
        {n: arrays[n] for n in ("latent", "rope", "kv")},
        latent_dim=case.rank,
        **cache,
    )
    native.add(
        "attention",
        {n: arrays[n] for n in ("q", "q_rope", "kv", "out")},
        heads=case.heads,
        value_dim=case.rank,
        q_kind=int(kind),
        out_kind=int(F32),
        scale=SCALE,
        **cache,
    )
    outputs, done = [], 0
    for n in chunks:
        sources = {"latent": case.latent, "rope": case.part, "q": case.q, "q_rope": case.q_rope}
        for name, source in sources.items():
            arrays[name][2 : 2 + n] = source[done : done + n]
            arrays[name][:2] = source[7:9]
        native.run([2, n], slots=[0, 1])
        outputs.append(arrays["out"][2 : 2 + n].copy())
        done += n
        native.num_computed[1] = done
    return np.concatenate(outputs)


def expected(case: Case, kind: int) -> np.ndarray:
    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(DTYPES[kind]).astype(np.float64)

    keys = np.concatenate([rounded(case.latent), rounded(case.part)], axis=1)
    by_head = (case.length, case.heads, -1)
    q = np.concatenate([rounded(case.q).reshape(by_head), rounded(case.q_rope).reshape(by_head)], 2)
    scores = np.einsum("thd,sd->hts", q, keys) * SCALE
    scores[:, np.arange(case.length)[:, None] < np.arange(case.length)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hts,sd->thd", weights, keys[:, : case.rank]).reshape(case.length, -1)


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize(("kind", "tolerance"), [(F32, 2e-5), (BF16, 2e-2)])
@pytest.mark.parametrize(
    ("case", "cuts"),
    [
        (HALF_TILES, [[1, 60, 9, 1, 79], [130, *[1] * 20]]),
        (LONG_KEYS, [[1, 60, 9, 1, 79], [130, *[1] * 20]]),
        (WHOLE_TILES, [[1, 511, 1, 1, 57], [500, 30, *[1] * 41]]),
    ],
)
def test_equals_the_definition_in_any_chunks(isa, kind, tolerance, case, cuts):
    with use_isa(isa):
        whole = run(case, kind, [case.length])
        assert np.abs(whole - expected(case, kind)).max() <= tolerance
        for chunks in cuts:
            assert np.array_equal(run(case, kind, chunks), whole)
        assert np.array_equal(run(case, kind, [70, case.length - 70], threads=2), whole)
