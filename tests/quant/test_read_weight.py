"""Every checkpoint format unpacks to exactly the values that `gguf` (or numpy) gives it."""

from __future__ import annotations

import time

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from galley.errors import ModelError
from galley.kernels.weights import pack
from galley.loader.tensor import RawTensor
from galley.quant import (
    BLOCKS,
    FORMATS,
    QuantizedWeight,
    concat_rows,
    interleave_rows,
    read_weight,
    to_float32,
)
from tests.quant.blocks import random_blocks

ROWS, K = 24, 512
BY_QUANTIZE = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
K_TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
TABLES = ["IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4"]
TERNARY = ["TQ1_0", "TQ2_0"]
#: Bits of a value in memory at most: four and the type's scales.
WIDENED = {
    "IQ1_S": 4.4, "IQ1_M": 4.6, "IQ2_XXS": 4.4, "IQ2_XS": 4.6, "IQ2_S": 4.6, "IQ3_XXS": 4.4,
    "IQ3_S": 4.4,
}  # fmt: skip
BITS = {f"Q{bits}{kind}": bits for bits in (2, 3, 4, 5, 6) for kind in ("_0", "_1", "_K")}
GROUP = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 16}


def raw(dtype, data, shape, row_order=None):
    return RawTensor("w", tuple(shape), dtype, data, row_order)


@pytest.mark.parametrize("name", BY_QUANTIZE)
def test_quantised_weights_equal_gguf(name):
    weights = np.random.default_rng(0).normal(0, 0.05, (ROWS, K)).astype(np.float32)
    data = gguf.quantize(weights, Type[name])
    data = data.view(np.uint8)
    got = to_float32(raw(name, data, (ROWS, K)))
    want = gguf.dequantize(data, Type[name])
    assert got.dtype == np.float32
    assert np.array_equal(got, want)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", *K_TYPES])
def test_random_blocks_equal_gguf(name):
    data = random_blocks(name, np.random.default_rng(1), ROWS, K)
    u = read_weight(raw(name, data, (ROWS, K))).codes()
    assert np.array_equal(u.to_float32(), gguf.dequantize(data, Type[name]))
    assert u.bits == BITS.get(name, 8)
    assert u.group == GROUP.get(name, 32)
    assert u.q.dtype == np.uint8
    assert u.q.astype(int).min() - u.zero >= -128
    assert u.q.astype(int).max() - u.zero <= 127
    assert u.q.max() == 2**u.bits - 1
    assert u.scales().shape == (ROWS, K // u.group)


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("float32", np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)),
        ("float16", np.linspace(-1, 1, 64, dtype=np.float16).reshape(4, 16)),
        ("bfloat16", np.linspace(-1, 1, 64).astype(ml_dtypes.bfloat16).reshape(4, 16)),
        ("float32", np.linspace(-1, 1, 64, dtype=np.float32)),
        ("F32", np.linspace(-1, 1, 64, dtype=np.float32)),
    ],
)
def test_dense_values_are_kept(dtype, array):
    u = read_weight(raw(dtype, array, array.shape))
    assert u.dense.dtype.name in ("float32", "bfloat16")
    assert np.array_equal(u.to_float32(), array.astype(np.float32))


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "Q8_0"])
def test_row_order_reorders_rows(name):
    rng = np.random.default_rng(2)
    data = random_blocks(name, rng, ROWS, K)
    order = rng.permutation(ROWS)
    got = to_float32(raw(name, data, (ROWS, K), order))
    assert np.array_equal(got, gguf.dequantize(data, Type[name])[order])


def test_read_only_maps_are_enough(tmp_path):
    data = random_blocks("Q4_K", np.random.default_rng(3), ROWS, K)
    path = tmp_path / "blocks"
    path.write_bytes(data.tobytes())
    mapped = np.memmap(path, np.uint8, "r", shape=data.shape)
    assert np.array_equal(
        to_float32(raw("Q4_K", mapped, (ROWS, K))), gguf.dequantize(data, Type.Q4_K)
    )


@pytest.mark.parametrize("name", ["Q8_K", "Q1_0", "float8_e4m3fn", "int3"])
def test_unknown_formats_are_refused_by_name(name):
    with pytest.raises(ModelError, match=rf"tensor w: weight format {name} is not supported"):
        read_weight(raw(name, np.zeros((2, 8), np.uint8), (2, 16)))


def test_data_of_another_shape_is_refused():
    data = random_blocks("Q8_0", np.random.default_rng(4), ROWS, K)
    with pytest.raises(ModelError, match="not whole blocks"):
        read_weight(raw("Q8_0", data[:, :-1], (ROWS, K)))
    with pytest.raises(ModelError, match=r"the checkpoint says \(24, 480\)"):
        read_weight(raw("Q8_0", data, (ROWS, K - 32)))


@pytest.mark.parametrize("name", ["F16", "BF16", "F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_packed_weight_is_no_larger_than_its_file(name):
    data = gguf.quantize(np.ones((64, K), np.float32), Type[name]).view(np.uint8)
    assert pack(read_weight(raw(name, data, (64, K)))).data.nbytes <= 1.02 * data.nbytes


@pytest.mark.parametrize("name", K_TYPES)
def test_a_packed_k_type_is_as_large_as_its_file(name):
    data = random_blocks(name, np.random.default_rng(6), 64, K)
    weight = read_weight(raw(name, data, (64, K)))
    packed = pack(weight)
    assert packed.data.nbytes == data.nbytes
    assert np.array_equal(packed.unpack(), gguf.dequantize(data, Type[name]))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_packed_as_their_codes_are(name):
    """From where they lie in two tensors, interleaved, in another order and cut."""
    rng = np.random.default_rng(11)
    parts = [
        read_weight(raw(name, random_blocks(name, rng, 48, 768), (48, 768), rng.permutation(48)))
        for _ in range(2)
    ]
    assert all(part.q is None for part in parts)
    for joined in (interleave_rows(*parts, 2), concat_rows(parts).take(slice(5, 80))):
        for weight in (joined, joined.columns(256, 512), joined.columns(512, 768)):
            got, want = pack(weight), pack(weight.codes())
            assert got.format == want.format
            assert np.array_equal(got.data, want.data)
    with pytest.raises(ValueError, match="cut through blocks"):
        parts[0].columns(0, 16)


@pytest.mark.parametrize("name", TABLES)
def test_types_with_a_table_equal_gguf(name):
    data = random_blocks(name, np.random.default_rng(7), 64, 1024)
    if name == "MXFP4":  # all exponents but of values that float32 cannot hold
        data[:, ::17] = np.random.default_rng(8).integers(0, 250, (64, 32))
    if name == "NVFP4":  # scales without a sign
        data.reshape(-1, 36)[:, :4] &= 127
    weight = read_weight(raw(name, data, (64, 1024)))
    want = gguf.dequantize(data, Type[name])
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    assert (packed.format.name, packed.format.table) == ("i4", "levels")


@pytest.mark.parametrize("name", TABLES)
def test_a_packed_type_with_a_table_is_as_small_as_its_file(name):
    data = random_blocks(name, np.random.default_rng(7), 64, 4096)
    packed = pack(read_weight(raw(name, data, (64, 4096))))
    assert packed.data.nbytes <= 1.02 * data.nbytes


@pytest.mark.parametrize("name", TERNARY)
def test_ternary_types_equal_gguf(name):
    weights = np.random.default_rng(7).integers(-1, 2, (64, K)) * np.float32(0.03)
    for data in (
        gguf.quantize(weights, Type[name]),
        random_blocks(name, np.random.default_rng(8), 64, K),
    ):
        weight = read_weight(raw(name, data, (64, K)))
        want = gguf.dequantize(data, Type[name])
        assert np.array_equal(weight.to_float32(), want)
        packed = pack(weight)
        assert np.array_equal(packed.unpack(), want)
        assert packed.data.nbytes <= 1.02 * data.nbytes


@pytest.mark.parametrize("scale", [50, 1e-4], ids=["normal", "subnormal eighths"])
@pytest.mark.parametrize("name", WIDENED)
def test_types_with_a_codebook_equal_gguf(name, scale):
    data = random_blocks(name, np.random.default_rng(9), 64, 1024, scale)
    weight = read_weight(raw(name, data, (64, 1024)))
    want = gguf.dequantize(data, Type[name])
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    if scale == 50:
        assert packed.data.nbytes <= WIDENED[name] / 8 * 64 * 1024


def test_every_listed_format_is_reached_by_a_test():
    dense = {"float32", "float16", "bfloat16", "F32"}
    assert set(FORMATS) == {*dense, *BY_QUANTIZE, *K_TYPES, *TABLES, *TERNARY, *WIDENED}


@pytest.mark.parametrize("name", ["Q4_1", "Q4_K", "Q6_K"])
def test_a_hundred_million_parameters_take_about_a_second(name):
    data = random_blocks(name, np.random.default_rng(5), 4096, 2048)
    start = time.process_time()
    u = read_weight(raw(name, data, (4096, 2048)))
    per_parameter = (time.process_time() - start) / (4096 * 2048)
    assert isinstance(u, QuantizedWeight)
    assert per_parameter * 135e6 < 10.0
