"""AWQ: values against AutoAWQ's definition, a model against its dequantized weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from galley.errors import ModelError
from galley.kernels.weights import pack
from galley.loader import RawTensor
from galley.quant import scheme_of
from tests.quant.tensors import TensorDict
from tests.quant.twins import check_model, model_info, raw

CONFIG = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 32,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": None,
}
#: Which output each nibble of a number is, lowest first (AutoAWQ's `AWQ_ORDER`).
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def make_layer(
    name: str, n: int, k: int, group: int, rng: np.random.Generator
) -> tuple[list[RawTensor], np.ndarray]:
    """A layer's tensors, every bit of its codes and zeros random; its values, nibble by nibble."""
    groups = k // group
    qweight = rng.integers(-(2**31), 2**31, (k, n // 8)).astype(np.int32)
    qzeros = rng.integers(-(2**31), 2**31, (groups, n // 8)).astype(np.int32)
    scales = rng.normal(0, 0.02, (groups, n)).astype(np.float16)
    values = np.empty((n, k), np.float32)
    of = np.arange(k) // group
    for nibble, o in enumerate(ORDER):
        codes, zeros = (numbers >> 4 * nibble & 15 for numbers in (qweight, qzeros[of]))
        each = scales[of, o::8].astype(np.float32)
        values[o::8] = (each * (codes - zeros).astype(np.float32)).T
    tensors = {"qweight": qweight, "qzeros": qzeros, "scales": scales}
    return [raw(f"{name}.{kind}", array) for kind, array in tensors.items()], values


@pytest.mark.parametrize(("group", "k"), [(32, 128), (64, 128), (128, 256), (1024, 1024), (-1, 96)])
def test_values_equal_the_definition(group, k):
    config = {**CONFIG, "group_size": group}
    layer, want = make_layer("w", 32, k, k if group == -1 else group, np.random.default_rng(k))
    tensors = TensorDict(*layer)
    weight = scheme_of(model_info(config)).read("w", (32, k), tensors)
    assert tensors.used == {tensor.name for tensor in layer}
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    assert packed.format.activations == "bf16"
    if 0 < group < k:  # the padding of one scale per output is more, of so few inputs
        assert packed.data.nbytes <= 1.02 * sum(tensor.data.nbytes for tensor in layer)


def test_an_awq_model_equals_its_dequantized_weights():
    rng = np.random.default_rng(0)
    check_model(CONFIG, lambda name, values: make_layer(name, *values.shape, 32, rng))


@pytest.mark.parametrize("group", [32, 64])
def test_the_gemv_layout(group):
    n, k, rng = 12, 128, np.random.default_rng(0)
    qweight = rng.integers(-(2**31), 2**31, (n, k // 8)).astype(np.int32)
    qzeros = rng.integers(-(2**31), 2**31, (n, 4)).astype(np.int32)  # padded
    scales = rng.normal(0, 0.02, (n, 32)).astype(np.float16)
    values = np.empty((n, k), np.float32)
    for o, i in np.ndindex(n, k):
        g = i // group
        code = int(qweight[o, i // 8]) >> 4 * (i % 8) & 15
        zero = int(qzeros[o, g // 8]) >> 4 * (g % 8) & 15
        values[o, i] = np.float32(scales[o, g]) * np.float32(code - zero)
    arrays = {"qweight": qweight, "qzeros": qzeros, "scales": scales}
    scheme = scheme_of(model_info({**CONFIG, "version": "gemv", "group_size": group}))
    layer = [raw(f"w.{kind}", array) for kind, array in arrays.items()]
    assert np.array_equal(scheme.read("w", (n, k), TensorDict(*layer)).to_float32(), values)
    layer[1] = raw("w.qzeros", qzeros[:, :0])
    with pytest.raises(ModelError, match=r"w\.qzeros has no place for"):
        scheme.read("w", (n, k), TensorDict(*layer))


def marlin_places() -> list[tuple[int, int]]:
    """(input, output) of the 1,024 codes of four tiles, in order (AutoAWQ's `_get_perms`)."""
    places = []
    for i in range(32):
        rows = [2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4 + 4), 2 * (i % 4 + 4) + 1]
        for tile in range(4):
            eight = [(row, 16 * tile + i // 4 + 8 * block) for block in (0, 1) for row in rows]
            places += [eight[j] for j in ORDER]
    return places


@pytest.mark.parametrize(("group", "k"), [(32, 128), (-1, 64)])
def test_the_marlin_layout(group, k):
    n, rng, span = 128, np.random.default_rng(0), k if group == -1 else group
    qweight = rng.integers(-(2**31), 2**31, (k // 16, 2 * n)).astype(np.int32)
    scales = rng.normal(0, 0.02, (k // span, n)).astype(np.float16)
    of_output = np.empty((k // span, n), np.float32)
    run = [[0, 1, 8, 9, 16, 17, 24, 25][j] + 2 * i for i in range(4) for j in range(8)]
    run = run if group == -1 else [i + 8 * j for i in range(8) for j in range(8)]
    for g, o in np.ndindex(*scales.shape):
        of_output[g, o // len(run) * len(run) + run[o % len(run)]] = scales[g, o]
    values, places = np.empty((n, k), np.float32), marlin_places()
    for tile, number, nibble in np.ndindex(*qweight.shape, 8):
        four, at = divmod(8 * number + nibble, 1024)
        i, o = 16 * tile + places[at][0], 64 * four + places[at][1]
        code = int(qweight[tile, number]) >> 4 * nibble & 15
        values[o, i] = of_output[i // span, o] * np.float32(code - 8)
    config = {**CONFIG, "version": "marlin", "zero_point": False, "group_size": group}
    layer = (raw("w.qweight", qweight), raw("w.scales", scales))
    weight = scheme_of(model_info(config)).read("w", (n, k), TensorDict(*layer))
    assert np.array_equal(weight.to_float32(), values)
    assert np.array_equal(pack(weight).unpack(), values)


def test_the_gemv_fast_layout():
    n, k, group, rng = 12, 128, 64, np.random.default_rng(0)
    qweight = rng.integers(-(2**15), 2**15, (n // 4, k)).astype(np.int16)
    scales = rng.normal(0, 0.02, (8, n)).astype(np.float16)  # padded
    minimums = rng.normal(0, 0.2, (8, n)).astype(np.float16)
    values = np.empty((n, k), np.float32)
    # Of 64 numbers of four codes each, sixteen follow each other for an output.
    for quarter, number, nibble in np.ndindex(n // 4, k, 4):
        row, inner = divmod(4 * (number % 64) + nibble, 64)
        a, rest = divmod(inner % 32, 8)
        c, b = divmod(rest, 4)
        o, i = 4 * quarter + row, number // 64 * 64 + inner // 32 * 32 + 8 * b + 2 * a + c
        code = int(qweight[quarter, number]) >> 4 * nibble & 15
        values[o, i] = np.float32(scales[i // group, o]) * np.float32(code)
        values[o, i] += np.float32(minimums[i // group, o])
    arrays = {"qweight": qweight, "qzeros": minimums, "scales": scales}
    scheme = scheme_of(model_info({**CONFIG, "version": "gemv_fast", "group_size": group}))
    layer = [raw(f"w.{kind}", array) for kind, array in arrays.items()]
    weight = scheme.read("w", (n, k), TensorDict(*layer))
    assert np.array_equal(weight.to_float32(), values)
    assert np.array_equal(pack(weight).unpack(), values)
    layer[2] = raw("w.scales", scales[:1])
    with pytest.raises(ModelError, match=r"w\.scales has no place for"):
        scheme.read("w", (n, k), TensorDict(*layer))


def test_the_original_names_of_settings_act():
    layer, want = make_layer("w", 8, 64, 64, np.random.default_rng(0))
    config = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}
    weight = scheme_of(model_info(config)).read("w", (8, 64), TensorDict(*layer))
    assert np.array_equal(weight.to_float32(), want)


def test_layers_without_codes_are_dense():
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float16)
    weight = scheme_of(model_info(CONFIG)).read("w", (8, 16), TensorDict(raw("w.weight", values)))
    assert np.array_equal(weight.to_float32(), values.astype(np.float32))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bits", 8, "bits is 8; 4 is supported"),
        ("group_size", 0, "group_size is 0"),
        ("version", "exllama", "version is 'exllama'; 'gemm', 'gemv', 'gemv_fast', 'marlin' are"),
        ("version", "marlin", "zero_point is True; False is supported by version marlin"),
        ("zero_point", False, "zero_point is False"),
    ],
)
def test_other_configurations_are_refused_by_name(key: str, value: Any, message: str):
    with pytest.raises(ModelError, match=message):
        scheme_of(model_info({**CONFIG, key: value}))


def test_damaged_layers_are_refused_by_name():
    scheme = scheme_of(model_info(CONFIG))
    layer, _ = make_layer("w", 8, 64, 32, np.random.default_rng(0))
    with pytest.raises(ModelError, match=r"no tensor w\.qzeros"):
        scheme.read("w", (8, 64), TensorDict(layer[0], layer[2]))
    with pytest.raises(ModelError, match="groups of 32"):
        scheme.read("w", (8, 72), TensorDict(*layer))
    floats = raw("w.qweight", np.zeros((64, 1), np.float32))
    with pytest.raises(ModelError, match="qweight is float32; int32 is needed"):
        scheme.read("w", (8, 64), TensorDict(floats, *layer[1:]))
