"""A KV cache of eight-bit numbers: the codes that are written, and attention over them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from galley.kernels.ops.attention import attend, visible_positions
from galley.kernels.ops.kv_cache import stored
from galley.kernels.values import KVLayer
from galley.kv.format import KVFormat
from tests.kernels.native_harness import BF16, F32, TILE_ISAS, Native, aligned, use_isa

STATIC = [KVFormat("fp8_e4m3"), KVFormat("fp8_e5m2")]
SCALED = [KVFormat(name, True) for name in ("fp8_e4m3", "fp8_e5m2", "int8")]
#: More than a chunk of 512 tokens, of which the last page is not full.
LENGTH, HEADS, KV_HEADS, DIM, SCALE = 571, 6, 2, 24, 0.2
K_SCALE, V_SCALE = 0.25, 0.5


def numbers(*shape: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    size = np.exp2(rng.integers(-12, 8, shape[:-1]))[..., None]
    return (rng.standard_normal(shape) * np.minimum(size, 2)).astype(np.float32)


class Cached:
    """A sequence in slot 1 beside one in slot 0: write_kv, then attention."""

    def __init__(self, kv: KVFormat, dim: int = DIM, window: int = 0, threads: int = 1) -> None:
        self.kv, self.dim = kv, dim
        self.native = native = Native(slots=2, max_len=LENGTH + 5, threads=threads)
        self.half = 16 * (dim + kv.scale_bytes)
        self.stride = native.block_size // 16 * 2 * KV_HEADS * self.half
        rows = LENGTH + 2
        self.arrays = {
            "k": aligned((rows, KV_HEADS * dim), np.float32),
            "v": aligned((rows, KV_HEADS * dim), np.float32),
            "q": aligned((rows, HEADS * dim), ml_dtypes.bfloat16),
            "out": aligned((rows, HEADS * dim), np.float32),
            "kv": aligned((native.num_blocks, self.stride), np.uint8),
        }
        self.arrays["kv"][:] = 0xFF  # memory that was never written may hold anything
        cache = {"kv_heads": KV_HEADS, "head_dim": dim, "kv_block_stride": self.stride}
        cache |= {"kv_kind": kv.number, "token_scales": int(kv.token_scales)}
        floats = {} if kv.token_scales else {"k_scale": K_SCALE, "v_scale": V_SCALE}
        pointers = {name: self.arrays[name] for name in ("k", "v", "kv")}
        native.add("write_kv", pointers, k_kind=F32, v_kind=F32, **cache, **floats)
        native.add(
            "attention",
            {name: self.arrays[name] for name in ("q", "kv", "out")},
            heads=HEADS,
            q_kind=BF16,
            out_kind=F32,
            scale=SCALE,
            window=window,
            **cache,
            **floats,
        )

    def run(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, chunks: list[int]) -> np.ndarray:
        """[tokens, heads * dim] of the whole sequence, computed in chunks."""
        outputs, done = [], 0
        for n in chunks:
            for name, source in (("q", q), ("k", k), ("v", v)):
                rows = source.reshape(len(source), -1)
                self.arrays[name][2 : 2 + n] = rows[done : done + n]
                self.arrays[name][:2] = rows[7:9]
            self.native.run([2, n], slots=[0, 1])
            outputs.append(self.arrays["out"][2 : 2 + n].copy())
            done += n
            self.native.num_computed[1] = done
        return np.concatenate(outputs)

    def codes(self, position: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """K and V [dim] uint8 of a token, found by the layout of docs/native_ops.md."""
        size = self.native.block_size
        block = self.arrays["kv"][self.native.block_table[1, position // size]]
        page = position % size // 16 * 2 * KV_HEADS + 2 * head
        k, v = (block[(page + i) * self.half :][: 16 * self.dim] for i in (0, 1))
        t = position % 16
        return (
            k.reshape(self.dim // 2, 16, 2)[:, t].reshape(-1),
            v.reshape(8, self.dim, 2)[t // 2, :, t % 2],
        )


def values_of(codes: np.ndarray, name: str) -> np.ndarray:
    if name == "int8":
        return np.where(codes & 0x80, -1.0, 1.0) * (codes & 0x7F)
    dtype = ml_dtypes.float8_e4m3fn if name == "fp8_e4m3" else ml_dtypes.float8_e5m2
    return codes.view(dtype).astype(np.float32)


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kv", STATIC, ids=str)
def test_codes_are_those_of_the_format(isa, kv):
    """All halves between two codes, their neighbours, and what is beyond the largest."""
    whole = values_of(np.arange(256, dtype=np.uint8), kv.name)
    known = np.sort(whole[np.isfinite(whole)])
    middle = (known[1:] + known[:-1]) / 2
    tricky = np.concatenate([known, middle, np.nextafter(middle, np.float32(9e9))])
    tricky = np.concatenate([tricky, [1e9, -1e9, np.inf, -np.inf, 1e-30]]).astype(np.float32)
    dim = len(tricky) + len(tricky) % 2
    k = np.zeros((1, KV_HEADS, dim), np.float32)
    k[:, :, : len(tricky)] = tricky * K_SCALE
    v = k * V_SCALE / K_SCALE
    with use_isa(isa):
        cached = Cached(kv, dim)
        q = np.ones((9, HEADS, dim), np.float32)
        cached.run(q, np.repeat(k, 9, 0), np.repeat(v, 9, 0), [1])
    expected = stored(torch.from_numpy(k), kv, K_SCALE).numpy() / K_SCALE
    for codes in cached.codes(0, 1):
        np.testing.assert_array_equal(values_of(codes, kv.name), expected[0, 1])


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("kv", [*STATIC, *SCALED], ids=str)
def test_attention_equals_the_reference_in_any_chunks(isa, kv):
    q = numbers(LENGTH, HEADS, DIM, seed=1).astype(ml_dtypes.bfloat16)
    k, v = numbers(LENGTH, KV_HEADS, DIM, seed=2), numbers(LENGTH, KV_HEADS, DIM, seed=3)
    with use_isa(isa):
        whole = Cached(kv).run(q, k, v, [LENGTH])
        for chunks in ([1, 511, 1, 1, 57], [500, 30, *[1] * 41]):
            np.testing.assert_array_equal(Cached(kv, threads=2).run(q, k, v, chunks), whole)
    kept = [stored(torch.from_numpy(x), kv, scale) for x, scale in ((k, K_SCALE), (v, V_SCALE))]
    visible = visible_positions(0, LENGTH, KVLayer(0, KV_HEADS, DIM))
    flat = torch.from_numpy(q.astype(np.float32).reshape(LENGTH, -1))
    expected = attend(flat, *kept, visible, SCALE).numpy()
    assert np.abs(whole - expected).max() <= 0.02
    assert np.abs(whole - expected).mean() <= 0.001


@pytest.mark.parametrize("kv", [STATIC[0], SCALED[2]], ids=str)
def test_a_window_hides_what_is_before_it(kv):
    q = numbers(LENGTH, HEADS, DIM, seed=1).astype(ml_dtypes.bfloat16)
    k, v = numbers(LENGTH, KV_HEADS, DIM, seed=2), numbers(LENGTH, KV_HEADS, DIM, seed=3)
    window = 70
    before = Cached(kv, window=window).run(q, k, v, [LENGTH])
    k[: LENGTH - window], v[: LENGTH - window] = 3.0, np.nan
    after = Cached(kv, window=window).run(q, k, v, [LENGTH - 9, 9])
    if kv.token_scales:  # what a NaN has for a scale is read and must not count
        np.testing.assert_array_equal(after[-1], before[-1])
    k[-1] = np.nan
    assert np.isnan(Cached(kv, window=window).run(q, k, v, [LENGTH])[-1]).all()


@pytest.mark.parametrize("kv", SCALED, ids=str)
def test_zeros_and_single_numbers_keep_their_values(kv):
    """A token of zeros has the scale 0; the largest number of a token is exact to a rounding."""
    q = np.ones((20, HEADS, DIM), np.float32)
    v = np.zeros((20, KV_HEADS, DIM), np.float32)
    v[:, 1, 5] = 1e-3
    out = Cached(kv).run(q, np.zeros_like(v), v, [20]).reshape(20, HEADS, DIM)
    np.testing.assert_allclose(out[:, 3:, 5], 1e-3, rtol=4e-3)
    out[:, 3:, 5] = 0
    assert not out.any()


def test_scales_are_refused_where_there_are_none():
    for wrong in ({"token_scales": 1}, {"k_scale": 2.0}, {"k_scale": 0.0}):
        native = Native(max_len=16)
        arrays = {name: aligned((16, 32), np.float32) for name in ("k", "v", "kv")}
        cache = {"kv_heads": 1, "head_dim": 32, "kv_kind": 1, "kv_block_stride": 4096}
        with pytest.raises(ValueError, match="scale"):
            native.add("write_kv", arrays, k_kind=F32, v_kind=F32, **cache, **wrong)
