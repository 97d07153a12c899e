"""GPTQ: values against a reader of single bits, a model against its dequantized weights."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from galley.errors import ModelError
from galley.kernels.weights import pack
from galley.loader import RawTensor
from galley.quant import scheme_of
from tests.quant.tensors import TensorDict
from tests.quant.twins import check_model, model_info, raw

CONFIG = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": False,
    "checkpoint_format": "gptq",
}


def random_layer(
    name: str, n: int, k: int, config: dict[str, Any], rng: np.random.Generator
) -> list[RawTensor]:
    """A quantized layer, every bit of its codes and zeros random."""
    bits = config["bits"]
    groups = 1 if config["group_size"] == -1 else k // config["group_size"]

    def numbers(rows: int, columns: int) -> np.ndarray:
        return rng.integers(-(2**31), 2**31, (rows, columns)).astype(np.int32)

    return [
        raw(f"{name}.qweight", numbers(k * bits // 32, n)),
        raw(f"{name}.qzeros", numbers(groups, n * bits // 32)),
        raw(f"{name}.scales", rng.normal(0, 0.02, (groups, n)).astype(np.float16)),
        raw(f"{name}.g_idx", (np.arange(k) // (k // groups)).astype(np.int32)),
    ]


def expected(layer: list[RawTensor], config: dict[str, Any]) -> np.ndarray:
    """float32 [N, K], from single bits and the format's description."""
    qweight, qzeros, scales, g_idx = (tensor.data for tensor in layer)
    bits = config["bits"]

    def numbers(words: np.ndarray) -> np.ndarray:
        """Of each row, whose words are one run of bits."""
        single = np.unpackbits(words.copy().view(np.uint8), axis=1, bitorder="little")
        return single.reshape(len(words), -1, bits) @ (1 << np.arange(bits))

    codes, zeros = numbers(qweight.T), numbers(qzeros)
    if config["checkpoint_format"] == "gptq":
        zeros = (zeros + 1) % 2**bits
    return scales.T[:, g_idx].astype(np.float32) * (codes - zeros[g_idx].T).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_values_equal_the_definition(bits, group, version):
    config = {**CONFIG, "bits": bits, "group_size": group, "checkpoint_format": version}
    layer = random_layer("w", 32, 256, config, np.random.default_rng(bits + group))
    tensors = TensorDict(*layer)
    weight = scheme_of(model_info(config)).read("w", (32, 256), tensors)
    want = expected(layer, config)
    assert tensors.used == {tensor.name for tensor in layer}
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    assert packed.format.activations == ("bf16" if bits == 4 else "as_is")
    if group != -1:  # the padding of one scale per output is more, of so few inputs
        assert packed.data.nbytes <= 1.02 * sum(tensor.data.nbytes for tensor in layer[:3])


def test_a_gptq_model_equals_its_dequantized_weights():
    rng = np.random.default_rng(0)

    def make_layer(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
        layer = random_layer(name, *values.shape, CONFIG, rng)
        return layer, expected(layer, CONFIG)

    check_model(CONFIG, make_layer)


@pytest.mark.parametrize("group", [32, -1])
def test_activation_order_that_leaves_inputs_in_their_groups_runs(group):
    config = {**CONFIG, "desc_act": True, "group_size": group}
    layer = random_layer("w", 32, 64, config, np.random.default_rng(0))
    weight = scheme_of(model_info(config)).read("w", (32, 64), TensorDict(*layer))
    assert np.array_equal(weight.to_float32(), expected(layer, config))


def with_order(layer: list[RawTensor], rng: np.random.Generator) -> list[RawTensor]:
    """The layer with inputs that belong to groups at random."""
    order = raw(layer[3].name, rng.permutation(layer[3].data))
    return [*layer[:3], order]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_activation_order_across_groups(bits):
    config = {**CONFIG, "desc_act": True, "bits": bits}
    rng = np.random.default_rng(bits)
    layer = with_order(random_layer("w", 32, 128, config, rng), rng)
    weight = scheme_of(model_info(config)).read("w", (32, 128), TensorDict(*layer))
    want = expected(layer, config)
    assert np.array_equal(weight.to_float32(), want)
    packed = pack(weight)
    assert np.array_equal(packed.unpack(), want)
    again = pack(packed.codes())
    assert again.format == packed.format
    assert np.array_equal(again.data, packed.data)
    file = sum(tensor.data.nbytes for tensor in layer)
    assert packed.data.nbytes <= 1.02 * file
    with pytest.raises(ValueError, match="order"):
        weight.columns(0, 64)


def test_a_model_with_activation_order_equals_its_dequantized_weights():
    """q, k and v, gate and up have the order of their common input, other layers their own."""
    rng = np.random.default_rng(0)
    together = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv"}
    orders: dict[tuple[str, int], np.ndarray] = {}

    def make_layer(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
        layer = random_layer(name, *values.shape, CONFIG, rng)
        key = together.get(name.rpartition(".")[2], name), values.shape[1]
        order = orders.setdefault(key, rng.permutation(layer[3].data))
        layer[3] = raw(layer[3].name, order)
        return layer, expected(layer, CONFIG)

    check_model({**CONFIG, "desc_act": True}, make_layer)


def test_layers_without_codes_are_dense():
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(ml_dtypes.bfloat16)
    weight = scheme_of(model_info(CONFIG)).read("w", (8, 16), TensorDict(raw("w.weight", values)))
    assert np.array_equal(weight.to_float32(), values.astype(np.float32))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bits", 5, "bits is 5; 2, 3, 4, 8 is supported"),
        ("desc_act", "yes", "desc_act is 'yes'"),
        ("group_size", 0, "group_size is 0"),
        ("checkpoint_format", "marlin", "checkpoint_format is 'marlin'"),
    ],
)
def test_other_configurations_are_refused_by_name(key, value, message):
    with pytest.raises(ModelError, match=message):
        scheme_of(model_info({**CONFIG, key: value}))


def test_damaged_layers_are_refused_by_name():
    scheme = scheme_of(model_info(CONFIG))
    layer = random_layer("w", 32, 64, CONFIG, np.random.default_rng(0))
    with pytest.raises(ModelError, match=r"no tensor w\.scales"):
        scheme.read("w", (32, 64), TensorDict(*layer[:2]))
    with pytest.raises(ModelError, match="groups of 32"):
        scheme.read("w", (32, 72), TensorDict(*layer))
    order = raw("w.g_idx", np.zeros(64, np.int32))
    with pytest.raises(ModelError, match=r"tensor w\.g_idx does not give 32 inputs to each"):
        scheme.read("w", (32, 64), TensorDict(*layer[:3], order))
    floats = raw("w.qweight", np.zeros((8, 32), np.float32))
    with pytest.raises(ModelError, match="qweight is float32; int32 is needed"):
        scheme.read("w", (32, 64), TensorDict(floats, *layer[1:]))
