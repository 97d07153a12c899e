"""compressed-tensors W8A8: values, agreement with emulated int8 layers, refusals."""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import pytest
import torch

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.loader import RawTensor
from galley.quant import scheme_of
from tests.models.checkpoints import Case, StateDict, make
from tests.quant.tensors import TensorDict
from tests.runner.models import ArrayCheckpoint, open_runner
from tests.runner.test_quality import teacher_forced, torch_logits

CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def facts(config, method="compressed-tensors") -> ModelInfo:
    return ModelInfo(
        "LlamaForCausalLM",
        {"quantization_config": config},
        vocab_size=1,
        max_position=1,
        dtype="bfloat16",
        quantization=method,
    )


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes and bfloat16 scales, one per output."""
    scale = (np.abs(weight).max(1, keepdims=True) / 127).astype(ml_dtypes.bfloat16)
    codes = np.clip(np.round(weight / scale.astype(np.float32)), -127, 127).astype(np.int8)
    return codes, scale


def test_values_are_scale_times_code():
    codes, scale = quantise(np.random.default_rng(0).normal(size=(12, 64)).astype(np.float32))
    tensors = TensorDict(
        RawTensor("w.weight", codes.shape, "int8", codes),
        RawTensor("w.weight_scale", scale.shape, "bfloat16", scale),
    )
    u = scheme_of(facts(CONFIG)).read("w", (12, 64), tensors)
    assert tensors.used == {"w.weight", "w.weight_scale"}
    assert u.activations == "token"
    want = codes.astype(np.float32) * scale.astype(np.float32)
    assert np.array_equal(u.to_float32(), want)
    assert np.array_equal(u.columns(3, 40).to_float32(), want[:, 3:40])
    assert np.array_equal(u.take(slice(2, 7)).to_float32(), want[2:7])


class Int8Linear(torch.nn.Module):
    """The values that the scheme defines, in float32."""

    def __init__(self, codes: np.ndarray, scale: np.ndarray) -> None:
        super().__init__()
        self.weight = torch.from_numpy(codes.astype(np.float32) * scale.astype(np.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        return torch.nn.functional.linear((x / step).round().clamp(-127, 127) * step, self.weight)


def test_a_w8a8_model_computes_what_the_scheme_prescribes():
    model = make(Case("Llama", {"tie_word_embeddings": True}))
    tensors = {}
    for name, parameter in StateDict(model).arrays.items():
        if name.endswith("_proj.weight"):
            codes, scale = quantise(parameter)
            path, _, leaf = name.removesuffix(".weight").rpartition(".")
            setattr(model.get_submodule(path), leaf, Int8Linear(codes, scale))
            tensors[name] = RawTensor(name, codes.shape, "int8", codes)
            tensors[f"{name}_scale"] = RawTensor(f"{name}_scale", scale.shape, "bfloat16", scale)
        else:
            tensors[name] = RawTensor(name, parameter.shape, "float32", parameter)
    state = StateDict(model, quantization_config=CONFIG)
    checkpoint = ArrayCheckpoint(state.model_info, tensors)
    ids = np.random.default_rng(1).integers(0, 131, (3, 40))
    want = torch_logits(model, ids)
    got = teacher_forced(open_runner(checkpoint, max_model_len=64, dtype="float32"), ids)
    errors = np.abs(got - want).max(-1) / np.abs(want).max()
    assert np.median(errors) < 1e-3


def test_an_int8_weight_without_its_scale_is_an_error():
    model = make(Case("Llama", {}))
    state = StateDict(model, quantization_config=CONFIG)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = {n: state.tensor(n) for n in state.names()}
    codes, _ = quantise(state.arrays[name])
    tensors[name] = RawTensor(name, codes.shape, "int8", codes)
    with pytest.raises(ModelError, match=r"no tensor .*q_proj\.weight_scale"):
        open_runner(ArrayCheckpoint(state.model_info, tensors))


def test_the_scheme_is_accepted_and_others_are_refused_by_name():
    scheme_of(facts(CONFIG))
    scheme_of(facts({}, method=None))
    scheme_of(facts({}, method="gguf"))
    with pytest.raises(ModelError, match="quantized by quip are not supported; auto-round, awq"):
        scheme_of(facts({}, method="quip"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "marlin-24"}, "format 'marlin-24' is not supported; pack-quantized, int-"),
        ({"format": "pack-quantized"}, "input_activations of packed weights"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "format is 'sparse-24-bitmask'"),
        ({"transform_config": {"config_groups": {}}}, "transform_config"),
        ({"config_groups": {}}, "config_groups is {}"),
        ({"config_groups": {"a": {"weights": 4}}}, "config_groups.a.weights is not an object"),
    ],
)
def test_other_checkpoints_name_the_value(changes, message):
    with pytest.raises(ModelError, match=message):
        scheme_of(facts({**CONFIG, **changes}))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("weights", "num_bits", 4),
        ("weights", "strategy", "tensor"),
        ("weights", "symmetric", False),
        ("weights", "type", "float"),
        ("input_activations", "strategy", "group"),
        ("input_activations", "type", "float"),
    ],
)
def test_other_schemes_name_the_value(part, key, value):
    config = copy.deepcopy(CONFIG)
    config["config_groups"]["group_0"][part][key] = value
    with pytest.raises(ModelError, match=rf"group_0\.{part}\.{key} is {value!r}"):
        scheme_of(facts(config))


def test_static_inputs_get_a_scale_per_token():
    config = copy.deepcopy(CONFIG)
    config["config_groups"]["group_0"]["input_activations"] |= {
        "dynamic": False,
        "strategy": "tensor",
    }
    codes, scale = quantise(np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32))
    tensors = TensorDict(
        RawTensor("w.weight", (32, 64), "int8", codes),
        RawTensor("w.weight_scale", scale.shape, "bfloat16", scale),
        RawTensor("w.input_scale", (1,), "float32", np.ones(1, np.float32)),
        RawTensor("w.input_zero_point", (1,), "int8", np.zeros(1, np.int8)),
    )
    weight = scheme_of(facts(config)).read("w", (32, 64), tensors)
    assert weight.activations == "token"
    assert len(tensors.used) == 4
