"""AutoRound: layers are those of GPTQ or AWQ, as the packing says."""

from __future__ import annotations

import numpy as np
import pytest

from galley.errors import ModelError
from galley.quant import scheme_of
from tests.quant import test_awq, test_gptq
from tests.quant.tensors import TensorDict
from tests.quant.twins import model_info, raw

CONFIG = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "data_type": "int",
    "packing_format": "auto_round:auto_gptq",
}


@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
@pytest.mark.parametrize(
    ("packing", "version"),
    [
        ("auto_round:auto_gptq", "gptq"),
        ("auto_round", "gptq_v2"),
        ("auto_round:gptqmodel", "gptq_v2"),
    ],
)
def test_packed_as_gptq(method, packing, version):
    like = {**test_gptq.CONFIG, "checkpoint_format": version}
    layer = test_gptq.random_layer("w", 32, 64, like, np.random.default_rng(0))[:3]
    scheme = scheme_of(model_info({**CONFIG, "quant_method": method, "packing_format": packing}))
    got = scheme.read("w", (32, 64), TensorDict(*layer)).to_float32()
    order = raw("w.g_idx", (np.arange(64) // 32).astype(np.int32))
    assert np.array_equal(got, test_gptq.expected([*layer, order], like))


def test_packed_as_awq():
    layer, want = test_awq.make_layer("w", 32, 64, 32, np.random.default_rng(0))
    scheme = scheme_of(model_info({**CONFIG, "packing_format": "auto_round:auto_awq"}))
    assert np.array_equal(scheme.read("w", (32, 64), TensorDict(*layer)).to_float32(), want)


def test_layers_with_a_configuration_of_their_own():
    extra = {"a.down_proj": {"bits": 8}, r".*\.o_proj": {"bits": 2, "group_size": 64}, "head": 3}
    scheme = scheme_of(model_info({**CONFIG, "extra_config": extra}))
    for name, bits, group in (("a.q", 4, 32), ("a.down_proj", 8, 32), ("a.o_proj", 2, 64)):
        like = {**test_gptq.CONFIG, "bits": bits, "group_size": group}
        layer = test_gptq.random_layer(name, 32, 64, like, np.random.default_rng(0))
        weight = scheme.read(name, (32, 64), TensorDict(*layer[:3]))
        assert np.array_equal(weight.to_float32(), test_gptq.expected(layer, like))
    dense = scheme_of(model_info({**CONFIG, "extra_config": {"w": {"bits": 16}}}))
    values = np.ones((8, 16), np.float32)
    assert dense.read("w", (8, 16), TensorDict(raw("w.weight", values))).dense is not None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("packing_format", "auto_round:fp8", "packing_format is 'auto_round:fp8'"),
        ("data_type", "mx_fp", "data_type is 'mx_fp'; 'int'"),
        ("act_bits", 8, "act_bits is 8"),
        ("extra_config", 3, "extra_config is not an object"),
        ("bits", 7, "bits is 7"),
    ],
)
def test_other_configurations_are_refused_by_name(key, value, message):
    with pytest.raises(ModelError, match=message):
        scheme_of(model_info({**CONFIG, key: value}))
