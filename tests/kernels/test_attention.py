"""Attention over the paged cache: close to float64, and the same bits for every chunking."""

from __future__ import annotations

import numpy as np
import pytest

from galley.kernels import _native
from tests.kernels.kv_pages import KVPages
from tests.kernels.native_harness import (
    BF16,
    F32,
    Q8,
    Q8_ROW,
    Q16,
    TILE_ISAS,
    Native,
    aligned,
    kind_dtype,
    use_isa,
)

INTEGERS = (Q8, Q8_ROW, Q16)


class Case:
    """Sequences with random Q, K and V for all their positions, all of them in the cache.

    Positions after a step's tokens are there too, so that an op that looks ahead shows.
    """

    def __init__(
        self,
        lengths,
        heads=3,
        kv_heads=1,
        dim=16,
        kind=BF16,
        q_kind=None,
        out_kind=F32,
        block_size=16,
        window=0,
        causal=True,
        slopes=None,
        threads=1,
        isa=TILE_ISAS[-1],
        seed=0,
        soft_cap=0.0,
        sinks=False,
        reach=None,
    ):
        self.lengths, self.heads, self.kv_heads, self.dim = lengths, heads, kv_heads, dim
        self.kind, self.window, self.causal = kind, window, causal
        self.q_kind = kind if q_kind is None else q_kind
        self.out_kind = out_kind
        self.scale, self.soft_cap = dim**-0.5, soft_cap
        self.slopes = None if slopes is None else np.array(slopes, np.float32)
        rng = np.random.default_rng(heads)
        self.sinks = rng.standard_normal(heads).astype(np.float32) * 3 if sinks else None
        self.reach = reach
        self.biases = None
        if reach is not None:
            self.biases = rng.standard_normal((2 * reach + 1, heads)).astype(np.float32)
        given = {"slopes": self.slopes, "sinks": self.sinks, "biases": self.biases}
        extra = {name: each for name, each in given.items() if each is not None}
        longest = -(-max(lengths) // block_size) * block_size
        with use_isa(isa):
            self.native = native = Native(
                slots=len(lengths), max_len=longest, block_size=block_size, threads=threads
            )
            self.pages = KVPages(native, kv_heads, dim, kind)
            total = sum(lengths)
            self.q_in = aligned((total, heads * dim), kind_dtype(self.q_kind))
            self.out = aligned((total, self.out_width()), self.out_dtype())
            native.add(
                "attention",
                {"q": self.q_in, "kv": self.pages.data, "out": self.out, **extra},
                heads=heads,
                kv_heads=kv_heads,
                head_dim=dim,
                q_kind=self.q_kind,
                kv_kind=kind,
                kv_block_stride=self.pages.block_stride,
                window=window,
                causal=int(causal),
                out_kind=out_kind,
                scale=self.scale,
                soft_cap=self.soft_cap,
                reach=reach or 0,
            )
        self.q, self.k, self.v = [], [], []
        for slot, n in enumerate(lengths):
            rng = np.random.default_rng([seed, n])  # a sequence is the same in every batch
            self.q.append(rng.standard_normal((n, heads, dim)).astype(kind_dtype(self.q_kind)))
            self.k.append(rng.standard_normal((n, kv_heads, dim)).astype(kind_dtype(kind)))
            self.v.append(rng.standard_normal((n, kv_heads, dim)).astype(kind_dtype(kind)))
            self.pages.write(slot, 0, self.k[slot], self.v[slot])

    def out_width(self):
        n = self.heads * self.dim
        return _native.activation_bytes(self.out_kind, n) if self.out_kind in INTEGERS else n

    def out_dtype(self):
        return np.uint8 if self.out_kind in INTEGERS else kind_dtype(self.out_kind)

    def step(self, counts, slots=None):
        """Compute `counts[i]` further tokens of slots[i]; returns their output rows."""
        slots = list(range(len(counts))) if slots is None else slots
        t = 0
        for slot, n in zip(slots, counts, strict=True):
            start = self.native.num_computed[slot]
            self.q_in[t : t + n] = self.q[slot][start : start + n].reshape(n, -1)
            t += n
        self.out.view(np.uint8)[...] = 0xFF
        self.native.run(counts, slots=slots)
        ends = np.cumsum(counts)
        for slot, n in zip(slots, counts, strict=True):
            self.native.num_computed[slot] += n
        return [self.out[e - n : e].copy() for e, n in zip(ends, counts, strict=True)]

    def in_chunks(self, slot, chunks):
        assert sum(chunks) == self.lengths[slot]
        self.native.num_computed[slot] = 0
        return np.concatenate([self.step([n], [slot])[0] for n in chunks])

    def exact(self, slot):
        """[positions, heads * dim] in float64."""
        q, k, v = (x[slot].astype(np.float64).swapaxes(0, 1) for x in (self.q, self.k, self.v))
        group, n = self.heads // self.kv_heads, q.shape[1]
        k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
        scores = q @ k.swapaxes(1, 2) * self.scale
        if self.soft_cap:
            scores = self.soft_cap * np.tanh(scores / self.soft_cap)
        i, j = np.ogrid[:n, :n]
        if self.slopes is not None:
            scores -= self.slopes[:, None, None] * abs(i - j)
        if self.biases is not None:
            distance = np.clip(j - i, -self.reach, self.reach)
            scores += np.moveaxis(self.biases[distance + self.reach], -1, 0)
        sees = (abs(i - j) < (self.window or n)) & ((j <= i) | (not self.causal))
        scores = np.where(sees, scores, -np.inf)
        top = scores.max(axis=-1, keepdims=True)
        p = np.exp(scores - top)
        sinks = 0 if self.sinks is None else np.exp(self.sinks[:, None, None] - top)
        p /= p.sum(axis=-1, keepdims=True) + sinks
        return (p @ v).swapaxes(0, 1).reshape(n, -1)


def tolerance(kind):
    return {"rtol": 0, "atol": 2e-2 if kind == BF16 else 5e-6}


def random_chunks(n, rng, longest=200):
    chunks = []
    while sum(chunks) < n:
        chunks.append(int(min(rng.integers(1, longest), n - sum(chunks))))
    return chunks


SHAPES = [(1, 1), (3, 1), (4, 2), (9, 3), (14, 2), (8, 1), (5, 5)]
DIMS = [2, 8, 10, 16, 20, 32, 64, 80, 96, 128, 256]


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("window", [0, 65])
@pytest.mark.parametrize("lengths", [[5, 70, 129], [700, 3], [1030]])
def test_without_causality_a_token_sees_those_behind_it(isa, kind, window, lengths):
    options = {"isa": isa, "causal": False, "window": window}
    case = Case(lengths, 4, 2, 32, kind, threads=2, **options)
    for slot, out in enumerate(case.step(lengths)):
        np.testing.assert_allclose(out, case.exact(slot), **tolerance(kind))
        alone = Case([lengths[slot]], 4, 2, 32, kind, **options)
        assert np.array_equal(alone.step([lengths[slot]])[0], out)


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("dim", DIMS)
def test_equals_float64(isa, kind, dim):
    heads, kv_heads = SHAPES[DIMS.index(dim) % len(SHAPES)]
    case = Case([100, 1, 17], heads, kv_heads, dim, kind, isa=isa)
    for slot, out in enumerate(case.step([100, 1, 17])):
        np.testing.assert_allclose(out, case.exact(slot), **tolerance(kind))


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
def test_head_groups(isa, kind, heads, kv_heads):
    case = Case([70, 33], heads, kv_heads, 16, kind, isa=isa, threads=2)
    for slot, out in enumerate(case.step([70, 33])):
        np.testing.assert_allclose(out, case.exact(slot), **tolerance(kind))


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
def test_long_context_in_chunks_of_512(isa, kind):
    case = Case([1100], 2, 1, 16, kind, isa=isa)
    out = case.in_chunks(0, [1000, 99, 1])
    np.testing.assert_allclose(out, case.exact(0), **tolerance(kind))


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize(
    "options",
    [
        {"soft_cap": 0.7},
        {"sinks": True},
        {"soft_cap": 0.5, "sinks": True, "window": 70},
        {"soft_cap": 0.7, "slopes": [0.01, 0.02, 0.04, 0]},
    ],
)
def test_soft_cap_and_sinks(isa, kind, options):
    case = Case([600, 40], 4, 2, 16, kind, isa=isa, threads=2, **options)
    plain = Case([600, 40], 4, 2, 16, kind, isa=isa, window=case.window)
    for slot, out in enumerate(case.step([600, 40])):
        exact = case.exact(slot)
        np.testing.assert_allclose(out, exact, **tolerance(kind))
        assert np.abs(exact - plain.exact(slot)).max() > 0.05
    assert np.array_equal(case.in_chunks(0, [599, 1]), case.in_chunks(0, [70, 530]))


@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_block_sizes_give_the_same_bits(kind, block_size):
    outs = []
    for size in (16, block_size):
        case = Case([150, 40], 4, 2, 32, kind, block_size=size)
        outs.append(case.step([150, 40]))
    for a, b in zip(*outs, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
def test_slopes(isa, kind):
    """Heads of very different slopes, over a border of chunks, in any chunking."""
    slopes = [0.5, 2**-8, 0.03, 0.0, 0.25, 1.0]
    case = Case([600, 40], 6, 3, 16, kind, slopes=slopes, isa=isa, threads=2)
    whole = case.step([600, 40])
    for slot, out in enumerate(whole):
        np.testing.assert_allclose(out, case.exact(slot), **tolerance(kind))
    assert np.array_equal(case.in_chunks(0, [530, 1, 69]), whole[0])


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("window", [0, 70])
def test_slopes_without_causality(isa, kind, window):
    """Scores fall with the distance on either side; a batch changes no bit."""
    slopes = [0.5, 2**-8, 0.03, 0.0, 0.25, 1.0]
    options = {"slopes": slopes, "isa": isa, "causal": False, "window": window}
    case = Case([600, 40], 6, 3, 16, kind, threads=2, **options)
    for slot, out in enumerate(case.step([600, 40])):
        np.testing.assert_allclose(out, case.exact(slot), **tolerance(kind))
        alone = Case(case.lengths[slot : slot + 1], 6, 3, 16, kind, **options)
        assert np.array_equal(alone.step(alone.lengths)[0], out)


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize(("reach", "causal"), [(0, False), (5, False), (128, False), (40, True)])
def test_biases_by_distance(isa, kind, reach, causal):
    """Within the reach and beyond it, over borders of tiles and chunks."""
    case = Case([600, 40, 1], 6, 3, 16, kind, reach=reach, causal=causal, isa=isa, threads=2)
    for slot, out in enumerate(case.step([600, 40, 1])):
        np.testing.assert_allclose(out, case.exact(slot), **tolerance(kind))
    if causal:
        assert np.array_equal(case.in_chunks(0, [530, 1, 69]), case.in_chunks(0, [600]))


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("window", [1, 5, 64, 100, 513, 5000])
def test_window(isa, kind, window):
    case = Case([700], 2, 1, 8, kind, window=window, isa=isa)
    out = case.in_chunks(0, [650, 49, 1])
    np.testing.assert_allclose(out, case.exact(0), **tolerance(kind))


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_chunking_gives_the_same_bits(isa, kind, window, threads):
    n = 1100
    case = Case([n], 3, 1, 16, kind, window=window, threads=threads, isa=isa)
    whole = case.in_chunks(0, [n])
    rng = np.random.default_rng(0)
    for _ in range(3):
        assert np.array_equal(case.in_chunks(0, random_chunks(n, rng)), whole)
    assert np.array_equal(case.in_chunks(0, [500, 200, 300] + [1] * 100), whole)


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (14, 2, 20), (8, 1, 32), (4, 4, 80)]
)
def test_decoding_one_by_one_equals_prefill(isa, heads, kv_heads, dim):
    case = Case([150], heads, kv_heads, dim, BF16, isa=isa)
    whole = case.in_chunks(0, [150])
    assert np.array_equal(case.in_chunks(0, [1] * 150), whole)


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
def test_row_in_a_mixed_batch_equals_row_alone(isa, kind):
    lengths = [1, 700, 64, 65, 40, 1500, 200]
    alone = []
    for n in lengths:
        alone.append(Case([n], 3, 1, 16, kind, isa=isa).in_chunks(0, [n]))
    for threads in (1, 2):
        case = Case(lengths, 3, 1, 16, kind, threads=threads, isa=isa)
        rng = np.random.default_rng(threads)
        parts = [[] for _ in lengths]
        while (left := np.array(lengths) - case.native.num_computed).any():
            slots = rng.permutation(np.flatnonzero(left))
            counts = [int(min(left[s], rng.choice([1, 1, 30, 300]))) for s in slots]
            for slot, out in zip(slots, case.step(counts, slots), strict=True):
                parts[slot].append(out)
        for slot in range(len(lengths)):
            assert np.array_equal(np.concatenate(parts[slot]), alone[slot])


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("out_kind", [BF16, Q8, Q8_ROW, Q16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 32), (4, 2, 8), (3, 3, 10)])
def test_other_out_kinds_are_f32_then_quantize(isa, out_kind, heads, kv_heads, dim):
    lengths = [90, 3]
    case = Case(lengths, heads, kv_heads, dim, out_kind=out_kind, isa=isa, threads=2)
    f32 = Case(lengths, heads, kv_heads, dim, isa=isa)
    expected = aligned(case.out.shape, case.out.dtype)
    with use_isa(isa):
        f32.native.add(
            "quantize", {"x": f32.out, "out": expected}, k=heads * dim, out_kind=out_kind
        )
    out = case.step(lengths)
    f32.step(lengths)
    padded = -(-heads * dim // 32) * 32
    used = {
        BF16: heads * dim,
        Q8: padded + padded // 32 * 16,
        Q8_ROW: padded + 8,
        Q16: 2 * padded + padded // 32 * 16,
    }[out_kind]
    assert np.array_equal(np.concatenate(out)[:, :used], expected[:, :used])


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize(("q_kind", "kind"), [(F32, BF16), (BF16, F32)])
def test_query_of_another_kind_than_the_cache(isa, q_kind, kind):
    case = Case([80], 2, 1, 16, kind, q_kind=q_kind, isa=isa)
    np.testing.assert_allclose(case.step([80])[0], case.exact(0), **tolerance(BF16))


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
def test_large_scores_do_not_overflow(isa, kind):
    case = Case([130], 2, 1, 16, kind, isa=isa)
    case.q[0] *= kind_dtype(kind)(1000)
    out = case.in_chunks(0, [130])
    assert np.isfinite(out.astype(np.float32)).all()
    np.testing.assert_allclose(out, case.exact(0), rtol=0, atol=0.05)


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
def test_nan_does_not_leave_its_sequence(isa, kind):
    lengths = [90, 91]
    clean = Case(lengths, 3, 1, 16, kind, isa=isa).step(lengths)
    case = Case(lengths, 3, 1, 16, kind, isa=isa)
    case.q[0][50] = np.nan
    broken = case.step(lengths)
    assert np.isnan(broken[0][50]).all()
    assert np.array_equal(np.delete(broken[0], 50, 0), np.delete(clean[0], 50, 0))
    assert np.array_equal(broken[1], clean[1])


@pytest.mark.parametrize(
    "wrong",
    [{"heads": 5}, {"kv_kind": 5}, {"q_kind": 2}, {"head_dim": 7}, {"scale": 0.0}, {"window": -1}],
)
def test_bad_arguments_are_refused(wrong):
    numbers = {"heads": 4, "kv_heads": 2, "head_dim": 8, "kv_kind": BF16, "q_kind": BF16}
    numbers |= {"kv_block_stride": 4096, "scale": 1.0} | wrong
    x = np.zeros(64, np.float32)
    with pytest.raises(ValueError, match="attention"):
        Native().add("attention", {"q": x, "kv": x, "out": x}, **numbers)
