"""rope_kv, and the plain ops that it fuses: rms_norm per head, rope, write_kv."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.kv_pages import KVPages
from tests.kernels.native_harness import BF16, F32, ISAS, Native, aligned, kind_dtype, use_isa

HALVES, INTERLEAVED = 0, 1
EPS = 1e-6


class Case:
    def __init__(
        self,
        lengths,
        heads=3,
        kv_heads=1,
        dim=16,
        rot_dim=None,
        style=HALVES,
        kind=BF16,
        norms=False,
        block_size=16,
        threads=1,
        isa=ISAS[-1],
        plain=False,
    ):
        self.lengths, self.heads, self.kv_heads, self.dim = lengths, heads, kv_heads, dim
        self.rot_dim, self.style, self.kind = rot_dim or dim, style, kind
        rng = np.random.default_rng(1)
        longest = -(-max(lengths) // block_size) * block_size
        self.native = Native(
            slots=len(lengths), max_len=longest, block_size=block_size, threads=threads
        )
        self.pages = KVPages(self.native, kv_heads, dim, kind)
        angles = np.outer(
            np.arange(longest), 100.0 ** (-np.arange(self.rot_dim // 2) / self.rot_dim)
        )
        self.table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        self.weights = [
            rng.standard_normal(dim).astype(np.float32) if norms else None for _ in range(2)
        ]
        width = (heads + 2 * kv_heads) * dim
        self.qkv = [
            np.random.default_rng(n).standard_normal((n, width)).astype(np.float32) for n in lengths
        ]
        self.qkv_in = aligned((sum(lengths), width), np.float32)
        self.q_out = aligned((sum(lengths), heads * dim), kind_dtype(kind))
        with use_isa(isa):
            if plain:
                self.add_plain()
            else:
                self.add_fused()

    def add_fused(self):
        arrays = {
            "qkv": self.qkv_in,
            "table": self.table,
            "q_out": self.q_out,
            "kv": self.pages.data,
        }
        if self.weights[0] is not None:
            arrays |= {"q_weight": self.weights[0], "k_weight": self.weights[1]}
        self.native.add(
            "rope_kv",
            arrays,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.dim,
            rot_dim=self.rot_dim,
            style=self.style,
            q_kind=self.kind,
            kv_kind=self.kind,
            kv_block_stride=self.pages.block_stride,
            eps=EPS,
        )

    def add_plain(self):
        """The ops one after the other, on column ranges of qkv."""
        rows, width = self.qkv_in.shape
        k_out = aligned((rows, self.kv_heads * self.dim), kind_dtype(self.kind))
        columns = self.qkv_in.reshape(-1)
        for heads, weight, out, start in (
            (self.heads, self.weights[0], self.q_out, 0),
            (self.kv_heads, self.weights[1], k_out, self.heads * self.dim),
        ):
            x, stride = columns[start:], width
            if weight is not None:
                normed = aligned((rows, heads * self.dim), np.float32)
                arrays = {"x": x, "weight": weight, "out": normed}
                self.native.add(
                    "rms_norm", arrays, n=self.dim, heads=heads, x_stride=stride, eps=EPS
                )
                x, stride = normed, heads * self.dim
            self.native.add(
                "rope",
                {"x": x, "table": self.table, "out": out},
                heads=heads,
                head_dim=self.dim,
                rot_dim=self.rot_dim,
                style=self.style,
                x_stride=stride,
                out_kind=self.kind,
            )
        v = columns[(self.heads + self.kv_heads) * self.dim :]
        self.native.add(
            "write_kv",
            {"k": k_out, "v": v, "kv": self.pages.data},
            kv_heads=self.kv_heads,
            head_dim=self.dim,
            k_kind=self.kind,
            v_kind=F32,
            v_stride=width,
            kv_kind=self.kind,
            kv_block_stride=self.pages.block_stride,
        )

    def step(self, counts, slots):
        t = 0
        for slot, n in zip(slots, counts, strict=True):
            start = self.native.num_computed[slot]
            self.qkv_in[t : t + n] = self.qkv[slot][start : start + n]
            t += n
        self.native.run(counts, slots=slots)
        ends = np.cumsum(counts)
        for slot, n in zip(slots, counts, strict=True):
            self.native.num_computed[slot] += n
        return [self.q_out[e - n : e].copy() for e, n in zip(ends, counts, strict=True)]

    def in_chunks(self, slot, chunks):
        """Queries, keys and values of all positions."""
        self.native.num_computed[slot] = 0
        q = np.concatenate([self.step([n], [slot])[0] for n in chunks])
        return q, *self.cached(slot)

    def cached(self, slot):
        return self.pages.read(slot, 0, self.native.num_computed[slot])

    def exact(self, slot, positions=None):
        n = self.lengths[slot]
        x = self.qkv[slot].reshape(n, -1, self.dim).astype(np.float64)
        q, k, v = np.split(x, [self.heads, self.heads + self.kv_heads], axis=1)
        table = self.table[np.arange(n) if positions is None else positions]
        rotated = [self.rotate(a, w, table) for a, w in zip((q, k), self.weights, strict=True)]
        return rotated[0].reshape(n, -1), rotated[1], v

    def rotate(self, x, weight, table):
        if weight is not None:
            x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPS) * weight
        half = self.rot_dim // 2
        table = table[:, None].astype(np.float64)
        z = table[..., :half] + 1j * table[..., half:]
        rotated = x.copy()
        if self.style == HALVES:
            a, b = slice(0, half), slice(half, self.rot_dim)
        else:
            a, b = slice(0, self.rot_dim, 2), slice(1, self.rot_dim, 2)
        y = (x[..., a] + 1j * x[..., b]) * z
        rotated[..., a], rotated[..., b] = y.real, y.imag
        return rotated


def close(got, exact, kind):
    rtol = 2**-8 if kind == BF16 else 1e-5
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("style", [HALVES, INTERLEAVED])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rot_dim"),
    [(3, 1, 16, 16), (4, 2, 64, 64), (2, 2, 80, 32), (1, 1, 10, 6), (2, 1, 2, 2), (4, 1, 128, 128)],
)
@pytest.mark.parametrize("norms", [False, True])
def test_equals_complex_multiplication(isa, kind, style, heads, kv_heads, dim, rot_dim, norms):
    case = Case([37], heads, kv_heads, dim, rot_dim, style, kind, norms, isa=isa)
    for got, exact in zip(case.in_chunks(0, [37]), case.exact(0), strict=True):
        close(got, exact, kind)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("style", [HALVES, INTERLEAVED])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rot_dim"), [(4, 2, 64, 64), (2, 2, 80, 32), (1, 1, 10, 6)]
)
@pytest.mark.parametrize("norms", [False, True])
def test_fused_is_the_plain_ops(isa, kind, style, heads, kv_heads, dim, rot_dim, norms):
    cases = [
        Case([45], heads, kv_heads, dim, rot_dim, style, kind, norms, isa=isa, plain=plain)
        for plain in (False, True)
    ]
    fused, plain = (case.in_chunks(0, [13, 1, 31]) for case in cases)
    for a, b in zip(fused, plain, strict=True):
        assert a.any()
        assert np.array_equal(a, b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
def test_keys_need_no_rotation(isa, kind):
    """write_kv alone: k and v from separate buffers, in either number format."""
    native = Native(slots=2, max_len=64, block_size=32)
    pages = KVPages(native, 2, 24, kind)
    rng = np.random.default_rng(5)
    k = rng.standard_normal((40, 50)).astype(np.float32)  # two more columns than two heads have
    v = rng.standard_normal((40, 48)).astype(kind_dtype(BF16))
    with use_isa(isa):
        native.add(
            "write_kv",
            {"k": k, "v": v, "kv": pages.data},
            kv_heads=2,
            head_dim=24,
            k_kind=F32,
            v_kind=BF16,
            k_stride=50,
            kv_kind=kind,
            kv_block_stride=pages.block_stride,
        )
    native.num_computed[:] = [11, 0]
    native.run([17, 23])
    for token in range(40):
        slot, position = (0, 11 + token) if token < 17 else (1, token - 17)
        (got_k,), (got_v,) = pages.read(slot, position, 1)
        assert np.array_equal(got_k, k[token, :48].reshape(2, 24).astype(kind_dtype(kind)))
        assert np.array_equal(got_v, v[token].reshape(2, 24).astype(kind_dtype(kind)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
def test_values_are_stored_as_they_are(isa, kind):
    case = Case([20], kind=kind, isa=isa)
    _, _, v = case.in_chunks(0, [20])
    assert np.array_equal(v, case.exact(0)[2].astype(kind_dtype(kind)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_any_chunking_gives_the_same_bits(isa, kind, block_size):
    case = Case([150], 4, 2, 20, 12, kind=kind, norms=True, block_size=block_size, isa=isa)
    whole = case.in_chunks(0, [150])
    for chunks in ([1] * 150, [7, 9, 16, 1, 100, 17], [15, 135]):
        case.pages.values[1:] = np.nan
        for a, b in zip(case.in_chunks(0, chunks), whole, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_a_batch_do_not_affect_each_other(threads):
    lengths = [5, 40, 1, 33]
    case = Case(lengths, 4, 2, 16, threads=threads)
    slots = [2, 0, 3, 1]
    outs = case.step([lengths[s] for s in slots], slots)
    for slot, q in zip(slots, outs, strict=True):
        alone = Case([lengths[slot]], 4, 2, 16)
        expected = alone.in_chunks(0, [lengths[slot]])
        for a, b in zip((q, *case.cached(slot)), expected, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("plain", [False, True])
def test_rotary_positions_are_a_column(plain):
    """Tokens are rotated by the column `positions` and placed by their index in the sequence."""
    case = Case([40], 4, 2, 32, kind=F32, plain=plain)
    positions = np.random.default_rng(2).integers(0, 40, 40, np.int32)
    case.native.bind(positions=positions)
    q, k, v = case.in_chunks(0, [40])
    exact = case.exact(0, positions)
    close(q, exact[0], F32)
    close(k, exact[1], F32)
    assert np.array_equal(v, exact[2].astype(np.float32))


@pytest.mark.parametrize("kind", [BF16, F32])
def test_nothing_else_is_written(kind):
    case = Case([50, 50], kind=kind, block_size=32)
    case.native.num_computed[:] = 17
    before = case.pages.data.copy()
    case.step([4], [1])
    k, _ = case.pages.read(1, 17, 4)
    assert np.isfinite(k.astype(np.float32)).all()
    nan = np.full((4, 1, 16), np.nan)
    case.pages.write(1, 17, nan, nan)
    assert np.array_equal(case.pages.data, before)


@pytest.mark.parametrize("wrong", [{"rot_dim": 20}, {"rot_dim": 3}, {"style": 2}, {"q_kind": 2}])
def test_bad_arguments_are_refused(wrong):
    x = np.zeros(64, np.float32)
    numbers = {"heads": 2, "kv_heads": 1, "head_dim": 16, "rot_dim": 16, "kv_block_stride": 4096}
    with pytest.raises(ValueError, match="rope_kv"):
        Native().add("rope_kv", {"qkv": x, "table": x, "q_out": x, "kv": x}, **(numbers | wrong))


def test_bad_arguments_of_the_plain_ops_are_refused():
    x = np.zeros(64, np.float32)
    rope = {"heads": 2, "head_dim": 16, "rot_dim": 16}
    for wrong in ({"x_stride": 31}, {"rot_dim": 18}, {"out_kind": 2}, {"heads": 0}):
        with pytest.raises(ValueError, match="rope: "):
            Native().add("rope", {"x": x, "table": x, "out": x}, **(rope | wrong))
    kv = {"kv_heads": 2, "head_dim": 16, "kv_block_stride": 4096}
    for wrong in ({"k_stride": 31}, {"v_stride": 31}, {"k_kind": 2}, {"kv_kind": 5}):
        with pytest.raises(ValueError, match="write_kv: "):
            Native().add("write_kv", {"k": x, "v": x, "kv": x}, **(kv | wrong))
