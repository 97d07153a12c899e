"""`linear`, `quantize` and `embedding` against numpy, and the invariance rule for each of them."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace

from galley.kernels import _native
from galley.kernels.ops.elementwise import FUNCTIONS
from galley.kernels.weights import PackedWeight, pack
from galley.quant import QuantizedWeight
from tests.kernels import activation_rows
from tests.kernels.native_harness import (
    BF16,
    F32,
    ISAS,
    Q8,
    Q8_ROW,
    Q16,
    TILE_ISAS,
    Native,
    aligned,
    use_isa,
)

NF4 = np.sort(np.random.default_rng(7).standard_normal(16)).astype(np.float32)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
FLOAT8_NAN = [0x7F, 0xFF]


@dataclass(frozen=True)
class Recipe:
    """How a random weight is made; fields as in `QuantizedWeight`."""

    bits: int
    group: int
    zero: int | str = 0  # "each": a random one per group; "fractions": one that is not whole
    scale: Any = np.float16
    min: bool = False
    super_scales: bool = False
    scale_range: tuple[int, int] | None = None  # of integers
    table: Any = None
    activations: str = "group"
    trits: bool = False
    nested: bool = False  # codes of levels as scales, with a factor per 256


#: Name → how a weight of that format is made. None = dense.
FORMATS: dict[str, Recipe | None] = {
    "f32": None,
    "bf16": None,
    "Q8_0": Recipe(8, 32, 128),
    "Q5_0": Recipe(5, 32, 16),
    "Q5_1": Recipe(5, 32, min=True),
    "Q5_K": Recipe(5, 32, scale=np.uint8, min=True, super_scales=True),
    "Q6_K": Recipe(6, 16, 32, scale=np.int8, super_scales=True),
    "Q2_K": Recipe(2, 16, scale=np.uint8, min=True, super_scales=True, scale_range=(0, 16)),
    "Q3_K": Recipe(3, 16, 4, scale=np.int8, super_scales=True, scale_range=(-32, 32)),
    "GPTQ 2 bits": Recipe(2, 32, "each", activations="as_is"),
    "groups of 16 with mins": Recipe(6, 16, min=True),
    "HQQ 4 bits": Recipe(4, 64, "fractions", activations="as_is"),
    "HQQ 1 bit": Recipe(1, 32, "fractions", ml_dtypes.bfloat16, activations="as_is"),
    "W8A8": Recipe(8, 0, 128, scale=np.float32, activations="token"),
    "W8A16 per output": Recipe(8, 0, 128, ml_dtypes.bfloat16, activations="as_is"),
    "Q4_0": Recipe(4, 32, 8),
    "Q4_1": Recipe(4, 32, min=True),
    "Q4_K": Recipe(4, 32, scale=np.uint8, min=True, super_scales=True),
    "GPTQ 128": Recipe(4, 128, 8, activations="as_is"),
    "AWQ 128": Recipe(4, 128, "each", activations="as_is"),
    "W4A16 per output": Recipe(4, 0, 8, ml_dtypes.bfloat16, activations="as_is"),
    "TQ1_0": Recipe(2, 256, 1, trits=True),
    "NF4 nested": Recipe(4, 64, table=NF4, activations="as_is", nested=True),
    "NF4": Recipe(4, 64, scale=np.float32, table=NF4, activations="as_is"),
    "E2M1": Recipe(4, 32, table=np.concatenate([E2M1, -E2M1]), activations="as_is"),
    "E4M3": Recipe(8, 128, scale=np.float32, table=E4M3, activations="as_is"),
}
FLOATS = ("NF4", "NF4 nested", "E4M3")
#: Whose rows are bf16 where AMX multiplies them, and may be.
FOUR_BITS = ("GPTQ 128", "AWQ 128", "W4A16 per output", "HQQ 4 bits")
INTEGERS = ("Q4_0", "Q4_1", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "E2M1")
#: (N, K): the default model's, then odd ones.
SHAPES = [(960, 576), (576, 1536), (64, 128), (33, 160), (1, 32), (31, 288), (70, 640)]
ODD_K = [(40, 7), (5, 1), (37, 71), (64, 33)]


def random_weight(name: str, n: int, k: int, seed: int = 0) -> QuantizedWeight:
    rng = np.random.default_rng(seed)
    recipe = FORMATS[name]
    if recipe is None:
        return dense_weight(n, k, rng, np.float32 if name == "f32" else ml_dtypes.bfloat16)
    return weight_of(recipe, n, k, rng)


def dense_weight(
    n: int, k: int, rng: np.random.Generator, dtype: Any = ml_dtypes.bfloat16
) -> QuantizedWeight:
    return QuantizedWeight(dense=rng.standard_normal((n, k)).astype(np.float32).astype(dtype))


def weight_of(recipe: Recipe, n: int, k: int, rng: np.random.Generator) -> QuantizedWeight:
    groups = -(-k // recipe.group) if recipe.group else 1

    def numbers(spread: float) -> np.ndarray:
        if recipe.super_scales:
            low, high = recipe.scale_range or (0 if recipe.min else -128, 64)
            return rng.integers(low, high, (n, groups)).astype(recipe.scale)
        return (rng.standard_normal((n, groups)) * spread).astype(recipe.scale)

    def factors() -> np.ndarray:
        return (rng.standard_normal((n, k // 256)) * 0.01).astype(np.float16)

    two_mins = recipe.super_scales and recipe.min
    zero, fraction = recipe.zero, None
    if zero == "fractions":
        zero, fraction = 0, rng.uniform(0, 2**recipe.bits, (n, groups)).astype(recipe.scale)
    if zero == "each":
        zero = rng.integers(0, 2**recipe.bits, (n, groups), np.uint8)
    q = rng.integers(0, 3 if recipe.trits else 2**recipe.bits, (n, k), np.uint8)
    if recipe.table is E4M3:
        q[np.isin(q, FLOAT8_NAN)] = 0
    weight = QuantizedWeight(
        q=q,
        bits=recipe.bits,
        group=recipe.group,
        zero=zero,
        scale=numbers(0.02),
        min=numbers(0.1) if recipe.min else None,
        fraction=fraction,
        super_scale=factors() if recipe.super_scales else None,
        super_min=factors() if two_mins else None,
        table=recipe.table,
        activations=recipe.activations,
        trits=recipe.trits,
    )
    if not recipe.nested:
        return weight
    run = (np.arange(n * groups) + 100) // 256
    return replace(
        weight,
        scale=rng.integers(0, 256, (n, groups), np.uint8),
        super_scale=rng.uniform(0.01, 0.05, run[-1] + 1).astype(np.float32)[run].reshape(n, groups),
        scale_table=np.random.default_rng(7).standard_normal(256).astype(np.float32),
        scale_base=np.full((n, 1), 0.03, np.float32),
    )


@functools.cache
def packed(name: str, n: int, k: int) -> PackedWeight:
    """The random weight, packed once for all tests that read it."""
    return pack(random_weight(name, n, k), "f32" if name == "f32" else "bf16")


def random_rows(m: int, k: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, k)).astype(np.float32)
    x[:, :: max(1, k // 5)] *= 20  # outliers, as activations have them
    return x


class Rows:
    """Activation rows of a kind, [m, bytes]."""

    def __init__(self, data: np.ndarray, kind: int) -> None:
        self.data, self.kind = data, kind

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.data[part], self.kind)


def linear(
    x: Rows,
    w: PackedWeight,
    out: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    threads: int = 1,
    **ints: int,
) -> np.ndarray:
    """The op on activation rows x; `out` defaults to float32 [m, N]."""
    m = len(x)
    if out is None:
        out = aligned((m, w.shape[0]), np.float32)
    arrays = {"x": x.data, "weight": w.data, "out": out}
    if bias is not None:
        arrays["bias"] = bias
    native = Native(max_len=m, threads=threads)
    native.add("linear", arrays, x_kind=x.kind, **w.arguments(), **ints)
    native.run([m])
    return out


def kinds_for(name: str) -> list[int]:
    """Kinds of activations that a weight accepts."""
    recipe = FORMATS[name]
    if recipe is None:
        return [F32 if name == "f32" else BF16]
    if recipe.activations == "token":
        return [Q8_ROW]
    return [F32] if name in FLOATS else [Q8, Q16, F32]


def rows_of(kind: int, x: np.ndarray) -> Rows:
    return Rows(activation_rows.quantized(x, kind), kind)


def expected(rows: Rows, w: PackedWeight) -> np.ndarray:
    x = activation_rows.values(rows.data, rows.kind, w.shape[1]).astype(np.float64)
    return x @ w.unpack().astype(np.float64).T


@functools.cache
def product(name: str, kind: int, n: int, k: int) -> tuple[Rows, np.ndarray]:
    """Random rows and what the weight makes of them, for all instruction sets."""
    rows = rows_of(kind, random_rows(13, k))
    return rows, expected(rows, packed(name, n, k))


@functools.cache
def unpacked(name: str, n: int, k: int) -> PackedWeight:
    """The weight's values as a dense one."""
    return pack(QuantizedWeight(dense=packed(name, n, k).unpack()), "f32")


def shapes_of(name: str) -> list[tuple[int, int]]:
    recipe = FORMATS[name]
    if recipe is None or recipe.group == 0:
        return SHAPES + ODD_K
    if recipe.super_scales or recipe.trits:
        return [(576, 1536), (33, 256), (70, 512)]
    return SHAPES


@functools.cache
def combination(bits: int, group: int, offset: str) -> tuple[PackedWeight, np.ndarray]:
    """A packed random weight [40, 384], and its values in float32."""
    rng = np.random.default_rng(bits * 1000 + group)
    levels = rng.integers(-128, 128, 2**bits).astype(np.float32)
    recipe = Recipe(
        bits,
        group,
        zero={"zeros": "each"}.get(offset, 2 ** (bits - 1) - 1),
        min=offset == "min",
        table={"levels": levels, "floats": levels / 3}.get(offset),
        activations="as_is",
    )
    weight = weight_of(recipe, 40, 384, rng)
    return pack(weight), weight.to_float32()


#: Every format with every kind of activations that it accepts.
PAIRS = [(name, kind) for name in FORMATS for kind in kinds_for(name)]


class TestPacking:
    @pytest.mark.parametrize("name", FORMATS)
    def test_unpacked_values_are_the_ones_packed(self, name):
        for n, k in shapes_of(name):
            w = packed(name, n, k)
            assert w.shape == (n, k)
            assert np.array_equal(w.unpack(), random_weight(name, n, k).to_float32())

    @pytest.mark.parametrize("name", [name for name, recipe in FORMATS.items() if recipe])
    def test_codes_come_back(self, name):
        w = packed(name, 70, 768)
        codes = w.codes()
        assert np.array_equal(codes.to_float32(), w.unpack())
        again = pack(codes)
        assert again.format == w.format
        assert np.array_equal(again.data, w.data)

    def test_format_is_the_narrowest_that_holds_the_codes(self):
        formats = {name: packed(name, 64, 512).format for name in FORMATS}
        for name, recipe in FORMATS.items():
            if recipe is None:
                assert formats[name].name == name
            else:
                assert formats[name].name == ("t2" if recipe.trits else f"i{recipe.bits}")
                assert formats[name].group == recipe.group
                activations = "bf16" if name in FLOATS + FOUR_BITS else recipe.activations
                assert formats[name].activations == activations
        scales = {name: fmt.scale for name, fmt in formats.items()}
        assert scales["Q4_0"] == "f16"
        assert (scales["Q4_K"], scales["Q5_K"], scales["Q6_K"]) == ("u6", "u6", "i8")
        assert (scales["Q2_K"], scales["Q3_K"]) == ("u4", "s6")
        assert (scales["W8A8"], scales["NF4"]) == ("f32", "f32")
        zeros = {name for name, fmt in formats.items() if fmt.offset == "zeros"}
        assert zeros == {"AWQ 128", "GPTQ 2 bits"}
        tables = {name: fmt.table for name, fmt in formats.items() if fmt.table != "none"}
        assert tables == {**dict.fromkeys(FLOATS, "floats"), "E2M1": "levels"}

    def test_scales_are_halved_if_that_is_exact(self):
        """float32 arrays of numbers that float16 or bfloat16 holds."""
        weight = random_weight("Q4_0", 8, 64)
        for dtype, name in ((np.float16, "f16"), (ml_dtypes.bfloat16, "bf16")):
            scale = np.float32([[1e-3, 2e-6]] * 8).astype(dtype).astype(np.float32)
            w = pack(replace(weight, scale=scale))
            assert w.format.scale == name
            assert np.array_equal(w.unpack(), replace(weight, scale=scale).to_float32())

    def test_equal_zeros_become_one(self):
        weight = replace(random_weight("AWQ 128", 8, 256), zero=np.full((8, 2), 7, np.uint8))
        w = pack(weight)
        assert (w.format.offset, w.format.zero) == ("zero", 7)
        assert np.array_equal(w.unpack(), weight.to_float32())

    def test_a_table_of_integers_needs_none_at_8_bits(self):
        rng = np.random.default_rng(0)
        table = rng.integers(-128, 128, 256).astype(np.float32) / 4
        weight = replace(random_weight("Q8_0", 40, 64), zero=0, table=table)
        w = pack(weight)
        assert (w.format.name, w.format.table) == ("i8", "none")
        assert np.array_equal(w.unpack(), weight.to_float32())

    def test_per_token_activations_need_codes_per_output(self):
        weight = random_weight("Q8_0", 8, 64)
        with pytest.raises(ValueError, match="one scale per token"):
            pack(replace(weight, activations="token"))

    def test_a_group_longer_than_k_is_one_scale_per_output(self):
        weight = random_weight("GPTQ 128", 8, 128)
        w = pack(weight)
        assert w.format.group == 0
        assert np.array_equal(w.unpack(), weight.to_float32())

    def test_groups_that_no_kernel_has_become_dense(self):
        rng = np.random.default_rng(0)
        weight = QuantizedWeight(
            q=rng.integers(0, 16, (40, 48), np.uint8),
            bits=4,
            group=24,
            zero=8,
            scale=rng.standard_normal((40, 2)).astype(np.float16),
        )
        w = pack(weight)
        assert w.format.name == "bf16"
        dense = weight.to_float32().astype(ml_dtypes.bfloat16).astype(np.float32)
        assert np.array_equal(w.unpack(), dense)

    def test_float32_is_rounded_to_even_bf16(self):
        values = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), np.inf, 1e-40]], np.float32)
        w = pack(QuantizedWeight(dense=values), "bf16")
        assert np.array_equal(w.unpack(), values.astype(ml_dtypes.bfloat16).astype(np.float32))

    @pytest.mark.parametrize("name", FORMATS)
    def test_cut_along_either_axis(self, name):
        w = packed(name, 96, 512)
        whole = w.unpack()
        rows, columns = slice(17, 65), slice(256, 512)
        for part in (slice(0, 64), rows):
            assert np.array_equal(w.cut(rows=part).unpack(), whole[part])
        assert np.array_equal(w.cut(columns=columns).unpack(), whole[:, columns])
        assert np.array_equal(w.cut(rows, columns).unpack(), whole[rows, columns])
        assert w.cut(rows, columns).format == w.format

    def test_cut_through_a_group_is_refused(self):
        with pytest.raises(ValueError, match="groups of 32"):
            packed("Q4_0", 64, 128).cut(columns=slice(16, 64))

    def test_numbers_that_do_not_fit_are_refused(self):
        weight = random_weight("Q4_0", 8, 32)
        weight.q[3, 5] = 16
        with pytest.raises(ValueError, match=r"do not fit their 4 bits"):
            pack(weight)
        weight = random_weight("AWQ 128", 8, 256)
        weight.zero[3, 1] = 16
        with pytest.raises(ValueError, match="zeros"):
            pack(weight)
        weight = random_weight("TQ1_0", 8, 256)
        weight.q[3, 5] = 3
        with pytest.raises(ValueError, match="codes do not fit"):
            pack(weight)

    def test_only_matrices_are_packed(self):
        with pytest.raises(ValueError, match="matrix"):
            pack(QuantizedWeight(dense=np.zeros(5, np.float32)))

    def test_wrong_memory_is_refused(self):
        w = packed("Q4_0", 64, 128)
        with pytest.raises(ValueError, match="bytes where"):
            PackedWeight(w.format, (64, 160), w.data)
        memory = np.zeros(w.data.nbytes + 128, np.uint8)
        start = -memory.ctypes.data % 64 + 4
        with pytest.raises(ValueError, match="multiple of 64"):
            PackedWeight(w.format, w.shape, memory[start : start + w.data.nbytes])

    def test_strided_dense_weights(self):
        values = np.random.default_rng(0).standard_normal((80, 120)).astype(np.float32)
        for view in (values[::2, 10:50], values.T, values[:, ::-1]):
            assert np.array_equal(pack(QuantizedWeight(dense=view), "f32").unpack(), view)


@pytest.mark.parametrize("isa", TILE_ISAS)
class TestValues:
    @pytest.mark.parametrize(("name", "kind"), PAIRS)
    def test_equals_the_product(self, isa, name, kind):
        # The levels of E4M3 differ most in size, and so do the terms of its sums.
        tolerance = 4e-6 if name == "E4M3" else 2e-6
        for n, k in shapes_of(name):
            x, want = product(name, kind, n, k)
            with use_isa(isa):
                y = linear(x, packed(name, n, k))
            assert np.abs(y - want).max() <= tolerance * np.abs(want).max(), (n, k)

    @pytest.mark.parametrize(
        "name", [name for name, kind in PAIRS if kind == F32 and name not in ("f32", *FLOATS)]
    )
    def test_float32_activations_give_the_bits_of_dense_weights(self, isa, name):
        for n, k in shapes_of(name):
            x = rows_of(F32, random_rows(13, k))
            with use_isa(isa):
                y, dense = linear(x, packed(name, n, k)), linear(x, unpacked(name, n, k))
            assert np.array_equal(y, dense)

    def test_every_float8_number(self, isa):
        """Levels of E4M3 are computed, not looked up."""
        codes = np.arange(256, dtype=np.uint8)[:, None].repeat(32, axis=1)
        scale = np.ones((256, 1), np.float32)
        w = pack(QuantizedWeight(q=codes, bits=8, group=32, scale=scale, table=E4M3))
        x = rows_of(F32, np.eye(32, dtype=np.float32)[:1])
        with use_isa(isa):
            y = linear(x, w)[0]
        assert np.array_equal(np.isnan(y), np.isnan(E4M3))
        finite = ~np.isnan(E4M3)
        assert np.array_equal(y[finite], E4M3[finite])

    @pytest.mark.parametrize("bits", [4, 5, 6, 8])
    @pytest.mark.parametrize("offset", ["zero", "min", "zeros", "levels", "floats"])
    def test_every_combination(self, isa, bits, offset):
        """Random codes: the native product against that of `to_float32`."""
        for group in (16, 32, 64, 128, 0):
            w, values = combination(bits, group, offset)
            assert w.format.group == group
            assert np.array_equal(w.unpack(), values)
            rows = random_rows(9, 384)
            floats = w.format.table == "floats"
            assert floats == (offset == "floats" or (offset == "levels" and bits in (5, 6)))
            for kind in [F32] if floats else [Q8, Q16, F32]:
                x = rows_of(kind, rows)
                exact = activation_rows.values(x.data, kind, 384).astype(np.float64)
                want = exact @ values.astype(np.float64).T
                with use_isa(isa):
                    y = linear(x, w)
                    assert np.abs(y - want).max() <= 2e-6 * np.abs(want).max(), (group, kind)
                    assert linear(x[4:5], w).tobytes() == y[4:5].tobytes(), (group, kind)

    @pytest.mark.parametrize(("name", "kind"), PAIRS)
    def test_row_does_not_depend_on_its_batch(self, isa, name, kind):
        """Every row at M = 1 … 80, on one and three threads, bit for bit."""
        w = packed(name, 70, 512)
        x = rows_of(kind, random_rows(80, 512))
        with use_isa(isa):
            whole = linear(x, w, threads=3)
            for m in [*range(1, 32), 33, 47, 48, 49, 64, 79]:
                assert linear(x[:m], w, threads=1 + 2 * (m % 2)).tobytes() == whole[:m].tobytes()
            for first in (1, 5, 24, 79):
                assert linear(x[first:], w).tobytes() == whole[first:].tobytes()

    @pytest.mark.parametrize(
        ("name", "kind"), [("bf16", BF16), ("Q8_0", Q8), ("Q4_1", Q8), ("Q4_1", Q16)]
    )
    def test_row_does_not_depend_on_long_prefills(self, isa, name, kind):
        """More rows than a tile holds."""
        w = packed(name, 64, 96)
        x = rows_of(kind, random_rows(523, 96))
        with use_isa(isa):
            whole = linear(x, w, threads=2)
            parts = [linear(x[a:b], w) for a, b in ((0, 100), (100, 341), (341, 523))]
        assert np.concatenate(parts).tobytes() == whole.tobytes()

    @pytest.mark.parametrize(
        ("name", "kind", "k"), [("f32", F32, 3331), ("bf16", BF16, 6401), ("W8A8", Q8_ROW, 12500)]
    )
    def test_row_of_long_k_does_not_depend_on_its_batch(self, isa, name, kind, k):
        """Long enough for several row blocks to go through K in pieces, a lone block in one."""
        n = 170  # more panels than share a piece, the last one partly empty
        w = packed(name, n, k)
        x = rows_of(kind, random_rows(25, k))
        bias = np.random.default_rng(2).standard_normal(n).astype(np.float32)
        with use_isa(isa):
            whole = linear(x, w, bias=bias, threads=2)
            for r in (0, 11, 24):
                assert linear(x[r : r + 1], w, bias=bias).tobytes() == whole[r : r + 1].tobytes()
            assert linear(x[3:20], w, bias=bias).tobytes() == whole[3:20].tobytes()
        want = expected(x, w) + bias
        assert np.abs(whole - want).max() <= 4e-6 * np.abs(want).max()

    def test_long_k_writes_groups_of_two_panels(self, isa):
        """SiLU·mul into groups of 32, of which a panel has half."""
        w = packed("bf16", 320, 6400)
        x = rows_of(BF16, random_rows(25, 6400))
        size = _native.activation_bytes(Q8, 160)
        with use_isa(isa):
            whole = linear(x, w, out=aligned((25, size), np.uint8), epilogue=1, out_kind=Q8)
            for r in (0, 24):
                one = aligned((1, size), np.uint8)
                linear(x[r : r + 1], w, out=one, epilogue=1, out_kind=Q8)
                assert one.tobytes() == whole[r : r + 1].tobytes()

    @pytest.mark.parametrize(
        ("name", "kind"), [("bf16", BF16), ("Q4_0", Q8), ("Q4_1", Q16), ("W8A8", Q8_ROW)]
    )
    def test_column_does_not_depend_on_its_panel(self, isa, name, kind):
        """A slice of the outputs has the same bits, as tensor parallelism needs."""
        w = packed(name, 100, 128)
        x = rows_of(kind, random_rows(9, 128))
        with use_isa(isa):
            whole = linear(x, w)
            part = linear(x, w.cut(rows=slice(37, 90)))
        assert part.tobytes() == np.ascontiguousarray(whole[:, 37:90]).tobytes()

    @pytest.mark.parametrize(
        ("name", "kind"), [("f32", F32), ("bf16", BF16), ("Q8_0", Q16), ("Q4_0", Q8), ("E4M3", F32)]
    )
    def test_nan_stays_in_its_row(self, isa, name, kind):
        w = packed(name, 40, 64)
        x = random_rows(7, 64)
        x[3, 5] = np.nan
        with use_isa(isa):
            y = linear(rows_of(kind, x), w)
            x[3, 5] = 0
            clean = linear(rows_of(kind, x), w)
        others = [0, 1, 2, 4, 5, 6]
        assert np.array_equal(y[others], clean[others])
        assert np.isnan(y[3]).all()

    @pytest.mark.parametrize("name", [name for name, kind in PAIRS if kind == Q16])
    def test_largest_codes_do_not_overflow(self, isa, name):
        """The greatest sums that 32 bits must hold: every code and every q at its end."""
        n, k = 40, 256
        weight = random_weight(name, n, k)
        weight.q[:] = 2 if weight.trits else 2**weight.bits - 1
        weight.q[::2] = 0
        if not isinstance(weight.zero, int):
            weight.zero[:] = 2**weight.bits - 1
            weight.zero[1::2] = 0
        w = pack(weight)
        x = np.ones((9, k), np.float32)
        x[::3] = -1
        x[1] = np.where(np.arange(k) % 2, 1, -1)
        rows = rows_of(Q16, x)
        q_of_rows, _, sums = activation_rows.parts(rows.data, Q16, k)
        assert np.abs(q_of_rows).min() == 32639
        assert np.abs(sums["start"]).max() == 8 * 32 * 32639
        with use_isa(isa):
            y = linear(rows, w)
        want = expected(rows, w)
        assert np.abs(y - want).max() <= 2e-6 * np.abs(want).max()


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("f32", F32),
        ("bf16", BF16),
        ("Q8_0", Q8),
        ("groups of 16 with mins", Q16),
        ("W8A8", Q8_ROW),
        ("Q4_1", Q16),
        ("NF4", F32),
    ],
)
class TestEpilogues:
    """A fused op gives bit for bit what its parts give one after the other."""

    def test_bias_and_residual(self, isa, name, kind):
        for n, m in itertools.product((64, 45), (1, 14)):
            w = packed(name, n, 96)
            x = rows_of(kind, random_rows(m, 96))
            rng = np.random.default_rng(2)
            bias = rng.standard_normal(n).astype(np.float32)
            residual = rng.standard_normal((m, n)).astype(np.float32)
            with use_isa(isa):
                plain = linear(x, w)
                with_bias = linear(x, w, bias=bias)
                both = linear(x, w, out=residual.copy(), bias=bias, accumulate=1)
            assert np.array_equal(with_bias, plain + bias), (n, m)
            assert np.array_equal(both, residual + with_bias), (n, m)

    def test_out_stride_writes_nothing_else(self, isa, name, kind):
        w = packed(name, 45, 96)
        x = rows_of(kind, random_rows(5, 96))
        out = np.full((5, 64), 7, np.float32)
        with use_isa(isa):
            linear(x, w, out=out, out_stride=64)
            assert np.array_equal(out[:, :45], linear(x, w))
        assert (out[:, 45:] == 7).all()

    def test_bf16_out_is_f32_out_rounded(self, isa, name, kind):
        x = rows_of(kind, random_rows(5, 96))
        for n in (64, 45, 17):
            w = packed(name, n, 96)
            out = aligned((5, n), ml_dtypes.bfloat16)
            with use_isa(isa):
                linear(x, w, out=out, out_kind=BF16)
                assert np.array_equal(out, linear(x, w).astype(ml_dtypes.bfloat16)), n

    @pytest.mark.parametrize("out_kind", [Q8, Q16])
    def test_integers_out_are_f32_out_quantised(self, isa, name, kind, out_kind):
        x = rows_of(kind, random_rows(14, 96))
        for n in (64, 45, 17):
            w = packed(name, n, 96)
            out = aligned((14, _native.activation_bytes(out_kind, n)), np.uint8)
            with use_isa(isa):
                linear(x, w, out=out, out_kind=out_kind)
                quantised = activation_rows.quantized(linear(x, w), out_kind)
            assert np.array_equal(out, quantised), n

    @pytest.mark.parametrize(("epilogue", "op"), [(1, "silu_and_mul"), (2, "gelu_and_mul")])
    def test_gate_and_up_are_the_op_apart(self, isa, name, kind, epilogue, op):
        x = rows_of(kind, random_rows(14, 96))
        for n, out_kind in itertools.product((32, 64, 96, 160), (F32, BF16, Q8, Q16)):
            w = packed(name, n, 96)
            bias = np.random.default_rng(2).standard_normal(n).astype(np.float32)
            numbers = {"n": n // 2, "interleaved": 1, "out_kind": out_kind}
            with use_isa(isa):
                apart = after(op, linear(x, w, bias=bias), **numbers)
                fused = aligned(apart.shape, np.uint8)
                kinds = {"epilogue": epilogue, "out_kind": out_kind}
                linear(x, w, out=fused, bias=bias, threads=2, **kinds)
            assert np.array_equal(fused, apart), (n, out_kind)

    @pytest.mark.parametrize("function", ["gelu", "silu"])
    def test_a_function_is_the_op_apart(self, isa, name, kind, function):
        x = rows_of(kind, random_rows(14, 96))
        for n, out_kind in ((45, F32), (45, BF16), (64, Q8)):
            w = packed(name, n, 96)
            bias = np.random.default_rng(2).standard_normal(n).astype(np.float32)
            numbers = {"function": FUNCTIONS.index(function), "out_kind": out_kind}
            with use_isa(isa):
                apart = after("elementwise", linear(x, w, bias=bias), n=n, **numbers)
                fused = aligned(apart.shape, np.uint8)
                linear(x, w, out=fused, bias=bias, threads=2, **numbers)
            assert np.array_equal(fused, apart), (n, out_kind)


def after(op: str, x: np.ndarray, **numbers: int) -> np.ndarray:
    """Bytes of the results of another op on rows of float32."""
    out = aligned((len(x), _native.activation_bytes(numbers["out_kind"], numbers["n"])), np.uint8)
    native = Native(max_len=len(x))
    native.add(op, {"x": x, "out": out}, **numbers)
    native.run([len(x)])
    return out


def sums_of_tiles(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x @ w.T of bf16 as tiles add it up: of 32 k, even and odd ones apart, in order."""
    total = np.zeros((len(x), len(w)), np.float32)
    for first in range(0, x.shape[1], 32):
        parts = [np.zeros_like(total), np.zeros_like(total)]
        for k in range(first, min(first + 32, x.shape[1])):
            parts[k % 2] += x[:, k, None] * w[:, k]
        total += parts[0] + parts[1]
    return total


@pytest.mark.parametrize("isa", TILE_ISAS)
class TestArgmax:
    @pytest.mark.parametrize(("name", "kind"), [("bf16", BF16), ("f32", F32), ("Q4_1", Q16)])
    @pytest.mark.parametrize("threads", [1, 3])
    def test_the_largest_number_of_each_row(self, isa, name, kind, threads):
        """Among more panels than are compared at once, of few and of many rows."""
        with use_isa(isa):
            w = packed(name, 4998, 64)
            rows = rows_of(kind, random_rows(250, 64))
            bias = np.zeros(4998, np.float32)
            bias[4997] = 3.0
            for m in (1, 9, 250):
                want = linear(rows[:m], w, bias=bias).argmax(axis=1)
                assert argmax(rows[:m], w, bias, threads) == want.tolist()

    def test_the_first_of_equal_ones(self, isa):
        with use_isa(isa):
            values = np.zeros((3000, 8), np.float32)
            values[[2, 40, 2999], 0] = 1.0
            w = pack(QuantizedWeight(dense=values), "f32")
            x = np.zeros((64, 8), np.float32)
            x[0, 0], x[1:, 0] = 1.0, -1.0
            assert argmax(Rows(x, F32), w, threads=3) == [2] + 63 * [0]

    def test_a_row_that_is_broken(self, isa):
        with use_isa(isa):
            w = pack(QuantizedWeight(dense=np.ones((100, 8), np.float32)), "f32")
            x = np.ones((4, 8), np.float32)
            x[0, 3], x[1, 3], x[2, 3] = np.nan, np.inf, -np.inf
            bias = np.zeros(100, np.float32)
            bias[50] = 1.0
            assert argmax(Rows(x, F32), w, bias) == [-1, -1, -1, 50]


def argmax(x: Rows, w: PackedWeight, bias: np.ndarray | None = None, threads: int = 1) -> list[int]:
    """The op `linear_argmax`."""
    found = np.full(len(x), -2, np.int32)
    arrays = {"x": x.data, "weight": w.data, "token_ids": found}
    if bias is not None:
        arrays["bias"] = bias
    native = Native(max_len=len(x), threads=threads)
    native.add("linear_argmax", arrays, x_kind=x.kind, **w.arguments())
    results = []
    for _ in range(20):  # threads take tiles in another order each time
        native.run([len(x)])
        results.append(found.tolist())
    assert results == 20 * results[:1]
    return results[0]


@pytest.mark.skipif("amx" not in TILE_ISAS, reason="needs AMX")
class TestTiles:
    @pytest.mark.parametrize("k", [7, 32, 71, 160, 2080])
    def test_order_of_additions_of_bf16(self, k):
        """In every row, whether K is cut into pieces (of long rows) or not."""
        w = packed("bf16", 70, k)
        x = rows_of(BF16, random_rows(70, k))
        values = activation_rows.values(x.data, BF16, k)
        whole = linear(x, w)
        assert np.array_equal(whole, sums_of_tiles(values, w.unpack()))
        for rows in (1, 5, 16, 17, 33):
            assert np.array_equal(linear(x[:rows], w), whole[:rows])

    @pytest.mark.parametrize(
        ("name", "kind"), [pair for pair in PAIRS if pair[1] in (Q8, Q16, Q8_ROW)]
    )
    def test_integers_give_the_bits_of_avx512(self, name, kind):
        for n, k in [*shapes_of(name)[-3:], (33, 4352)]:
            w = packed(name, n, k)
            x = rows_of(kind, random_rows(70, k))
            with use_isa("avx512"):
                want = linear(x, w)
            for rows in (1, 7, 15, 16, 17, 31, 32, 33, 49, 70):
                assert linear(x[:rows], w).tobytes() == want[:rows].tobytes()

    @pytest.mark.parametrize(
        "recipe",
        [
            *(FORMATS[name] for name in FLOATS),
            Recipe(8, 0, scale=np.float32, table=E4M3),
        ],
        ids=[*FLOATS, "E4M3 per output"],
    )
    def test_order_of_additions_of_floats(self, recipe):
        """Levels of bf16: sums of a group as of dense bf16, times its scale; in every row."""
        for n, k in [(70, 640), (33, 160), (40, 71 if recipe.group == 0 else 4352)]:
            w = pack(weight_of(recipe, n, k, np.random.default_rng(0)))
            x = rows_of(BF16, random_rows(70, k))
            codes = w.codes()
            levels = codes.table.astype(ml_dtypes.bfloat16).astype(np.float32)[codes.q]
            values, want = activation_rows.values(x.data, BF16, k), np.zeros((70, n), np.float32)
            for g, scale in enumerate(codes.scales().T):
                part = slice(g * (recipe.group or k), (g + 1) * (recipe.group or k))
                sums = sums_of_tiles(values[:, part], levels[:, part])
                want = (want + sums.astype(np.float64) * scale).astype(np.float32)
            whole = linear(x, w)
            assert np.array_equal(whole, want), (n, k)
            for rows in (1, 5, 16, 17, 33):
                assert np.array_equal(linear(x[:rows], w), whole[:rows])

    @pytest.mark.parametrize("name", [*FOUR_BITS, *INTEGERS])
    def test_order_of_additions_of_codes(self, name):
        """Integers as bf16: sums of a group, at most 256 values of it, times its scale, and of x
        times its min; in every row.
        """
        spans = FORMATS[name].super_scales
        for n, k in [(70, 512), (40, 2304)] if spans else [(70, 640), (33, 160), (40, 2080)]:
            w = pack(random_weight(name, n, k))
            x = rows_of(BF16, random_rows(70, k))
            x.data[3].view(np.uint16)[:40] = 1  # too small to be normal
            codes, group = w.codes(), FORMATS[name].group or k
            values, want = activation_rows.values(x.data, BF16, k), np.zeros((70, n), np.float32)
            values[3, :40] = 0
            zero = (
                codes.zero
                if isinstance(codes.zero, int)
                else np.repeat(codes.zero, group, axis=1)[:, :k]
            )
            levels = (
                codes.q.astype(np.float32) - zero if codes.table is None else codes.table[codes.q]
            )
            levels = levels.astype(np.float32)
            borders = sorted({*range(0, k, group), *range(0, k, 256), k})
            for first, last in itertools.pairwise(borders):
                g, part = first // group, slice(first, last)
                sums = sums_of_tiles(values[:, part], levels[:, part]).astype(np.float64)
                want = (want + sums * codes.scales()[:, g]).astype(np.float32)
                if codes.mins() is not None:
                    ones = np.ones((n, last - first), np.float32)
                    of_x = sums_of_tiles(values[:, part], ones).astype(np.float64)
                    want = (want + of_x * codes.mins()[:, g]).astype(np.float32)
            whole = linear(x, w)
            assert np.array_equal(whole, want), (n, k)
            for rows in (1, 2, 3, 5, 8, 9, 16, 17, 33):
                assert np.array_equal(linear(x[:rows], w), whole[:rows])


class TestQuantize:
    @pytest.mark.parametrize("isa", ISAS)
    @pytest.mark.parametrize("k", [1, 31, 32, 33, 100, 576])
    @pytest.mark.parametrize("kind", [Q8, Q8_ROW, Q16])
    def test_definition(self, isa, k, kind):
        x = random_rows(9, k)
        x[2] *= np.float32(1e-32)  # nothing is left of it
        with use_isa(isa):
            rows = activation_rows.quantized(x, kind)
        q, scale, sums = activation_rows.parts(rows, kind, k)
        padded = activation_rows.pad_columns(x, 32)
        groups = padded.reshape(9, scale.shape[1], -1)
        most = np.abs(groups).max(axis=2)
        top = np.float32(32639 if kind == Q16 else 127)
        assert np.array_equal(scale, most / top)
        inverse = np.where(most >= 1e-30, top / np.maximum(most, np.float32(1e-30)), np.float32(0))
        codes = np.rint(groups * inverse[..., None]).astype(np.int32)
        if kind == Q16:
            codes += (codes + 128) % 256 == 0  # the low byte is never -128
        assert np.array_equal(q.reshape(codes.shape), codes)
        total = codes.sum(axis=2)
        if kind == Q8_ROW:
            assert np.array_equal(sums["sum"], total)
            return
        assert np.array_equal(sums["start"], -8 * total)
        assert np.array_equal(sums["scaled_sum"], scale * total.astype(np.float32))
        assert np.array_equal(sums["half"], -8 * codes[:, :, :16].sum(axis=2))

    def test_every_instruction_set_gives_the_same_bits(self):
        x = random_rows(20, 300) * np.float32(1e-3)
        x[4, 32:64] = 0
        x[5, 3] = np.inf
        x[6, 290:294] = np.nan, 1, -np.inf, np.nan
        x[7, 40] = -np.nan
        x[8] *= np.float32(1e-36)
        for kind in (BF16, Q8, Q8_ROW, Q16):
            results = []
            for isa in ISAS:
                with use_isa(isa):
                    results.append(activation_rows.quantized(x, kind))
            assert all(np.array_equal(r, results[0]) for r in results)

    def test_bf16(self):
        x = random_rows(5, 77)
        rows = activation_rows.quantized(x, BF16)
        assert np.array_equal(rows.view(ml_dtypes.bfloat16), x.astype(ml_dtypes.bfloat16))

    @pytest.mark.parametrize("isa", ISAS)
    def test_every_16_bit_code(self, isa):
        """Both bytes of all integers that q16 has, and their sums."""
        codes = np.arange(-32639, 32640)
        groups = np.full((-(-len(codes) // 31), 32), 32639, np.float32)
        groups[:, 1:].flat[: len(codes)] = codes  # the first of a group makes its scale 1
        with use_isa(isa):
            rows = activation_rows.quantized(groups, Q16)
        q, scale, sums = activation_rows.parts(rows, Q16, 32)
        assert (scale == 1).all()
        low_byte_is_128 = (codes + 128) % 256 == 0
        assert low_byte_is_128.any()
        assert np.array_equal(q[:, 1:].flat[: len(codes)], codes + low_byte_is_128)
        assert np.array_equal(sums["start"][:, 0], -8 * q.sum(axis=1))
        assert np.array_equal(sums["half"][:, 0], -8 * q[:, :16].sum(axis=1))

    def test_strided_rows(self):
        x = random_rows(6, 96)
        out = aligned((6, _native.activation_bytes(Q8, 64)), np.uint8)
        native = Native(max_len=6)
        native.add("quantize", {"x": x, "out": out}, k=64, x_stride=96, out_kind=Q8)
        native.run([6])
        assert np.array_equal(out, activation_rows.quantized(x[:, :64], Q8))


class TestEmbedding:
    @pytest.mark.parametrize("isa", ISAS)
    @pytest.mark.parametrize("name", FORMATS)
    def test_rows_are_the_unpacked_ones(self, isa, name):
        w = packed(name, 100, 256)
        native = Native(max_len=64, threads=2)
        out = aligned((64, 256), np.float32)
        with use_isa(isa):
            native.add("embedding", {"weight": w.data, "out": out}, **w.arguments())
        native.run([64])
        assert np.array_equal(out, w.unpack()[native.history[0]])

    def test_an_unknown_token_gives_zeros(self):
        w = packed("Q4_0", 40, 64)
        native = Native(max_len=4)
        native.history[0] = [3, 40, -1, 39]
        out = aligned((4, 64), np.float32)
        out[:] = 5
        native.add("embedding", {"weight": w.data, "out": out}, **w.arguments())
        native.run([4])
        assert np.array_equal(out[[0, 3]], w.unpack()[[3, 39]])
        assert (out[[1, 2]] == 0).all()


class TestBadArguments:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"n": 0}, "n must be positive"),
            ({"k": -3}, "k must be positive"),
            ({"format": 10}, "format must be 0 .. 9"),
            ({"group": 24}, "groups of 24"),
            ({"zero": 16}, "zero is not a code"),
            ({"scale": 3}, "scales of 6 bits"),
            ({"scale": 4, "offset": 1}, "scales of int8"),
            ({"table": 1, "format": 5}, "codes of 4 bits"),
            ({"table": 1, "offset": 1}, "without offsets"),
            ({"table": 2, "offset": 2}, "a table has no zeros"),
            ({"x_kind": BF16, "group": 16, "offset": 2}, "x_kind 1 does not fit this weight"),
            ({"x_kind": Q8_ROW}, "x_kind 3 does not fit this weight"),
            ({"table": 2}, "x_kind 2 does not fit this weight"),
            ({"x_kind": 5}, "x_kind must be 0 .. 4"),
            ({"out_kind": Q8_ROW}, "q8_row"),
            ({"accumulate": 1, "out_kind": BF16}, "accumulate needs out_kind f32"),
            ({"accumulate": 2}, "accumulate must be 0 .. 1"),
            ({"out_stride": 10}, "out_stride is less"),
            ({"out_stride": 70, "out_kind": Q16}, "no stride"),
            ({"epilogue": 1, "n": 40}, "multiple of 32"),
            ({"rows": 0}, "rows must be"),
            ({"rows": ("patches", 1)}, "no dimension is named patches"),
            ({"colour": 3}, "unknown arguments: colour"),
        ],
    )
    def test_are_refused_by_name(self, wrong, message):
        w = packed("Q4_0", 64, 64)
        arrays = {"x": np.zeros(1024, np.uint8), "weight": w.data, "out": np.zeros(64)}
        with pytest.raises(ValueError, match=message):
            Native().add("linear", arrays, **{"x_kind": Q8, **w.arguments(), **wrong})

    def test_missing_pointer(self):
        w = packed("Q4_0", 64, 64)
        arrays = {"weight": w.data, "out": np.zeros(64)}
        with pytest.raises(ValueError, match="linear: missing pointer argument: x"):
            Native().add("linear", arrays, x_kind=Q8, **w.arguments())
