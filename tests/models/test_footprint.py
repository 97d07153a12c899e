"""Sizes of a model, known from its config alone."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from galley.kernels.backend import open_backend
from galley.kv.format import KVFormat
from galley.layers.shapes import ShapeSource
from galley.layers.weight_specs import Matrix, Part
from galley.loader.tensor import RawTensor
from galley.models.decoder import Stage
from galley.models.footprint import measure, weight_bytes
from galley.runner.load import load_model
from tests.layers.test_weights import Rank
from tests.models.checkpoints import CASES, Case, StateDict, make
from tests.models.driver import load
from tests.models.families import FAMILIES
from tests.quant.blocks import random_blocks
from tests.quant.test_awq import CONFIG as AWQ
from tests.quant.test_awq import make_layer as awq_layer
from tests.quant.test_compressed_weights import CASES as COMPRESSED
from tests.quant.test_compressed_weights import config_of
from tests.quant.test_compressed_weights import make_layer as compressed_layer
from tests.quant.test_gptq import CONFIG as GPTQ
from tests.quant.test_gptq import random_layer
from tests.quant.test_hqq import CONFIG as HQQ
from tests.quant.test_hqq import make_layer as hqq_layer
from tests.quant.twins import make_twins
from tests.runner.models import ArrayCheckpoint, default_checkpoint, in_format

#: Families whose layers are attention and a gated MLP.
LLAMAS = ("Llama", "Mistral", "Phi3", "Qwen2", "Qwen3")


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    model = make(CASES[request.param])
    return model, StateDict(model)


@pytest.fixture(scope="module", params=[n for n, case in CASES.items() if case.family in LLAMAS])
def dense(request):
    model = make(CASES[request.param])
    return model, StateDict(model)


def test_tensors_and_parameters_are_those_of_transformers(case):
    model, checkpoint = case
    footprint = measure(checkpoint.model_info)
    shapes = {name: checkpoint.tensor(name).shape for name in checkpoint.names()}
    assert dict(footprint.tensors) == shapes
    assert footprint.parameters == sum(p.numel() for p in set(model.parameters()))


def test_kv_layers_are_those_of_the_loaded_model(case):
    _, checkpoint = case
    loaded = load(checkpoint, open_backend("reference", "f32"))
    assert list(measure(checkpoint.model_info).kv_layers) == loaded.kv_layers


def test_operations_of_a_llama(dense):
    """As they are counted by hand: 2 for each weight of a linear layer, 4 for each pair of a
    query and a key element."""
    model, checkpoint = dense
    config = model.config
    head_dim = getattr(config, "head_dim", None) or 64 // config.num_attention_heads
    q = config.num_attention_heads * head_dim
    kv = config.num_key_value_heads * head_dim
    hidden, layers = config.hidden_size, config.num_hidden_layers
    each = hidden * (2 * q + 2 * kv) + 3 * hidden * config.intermediate_size
    footprint = measure(checkpoint.model_info)
    assert footprint.token_weights == layers * each
    assert footprint.logit_weights == hidden * config.vocab_size
    assert footprint.attention_width == layers * q
    head = 2 * hidden * config.vocab_size
    assert footprint.flops(context=10) == 2 * layers * each + head + 4 * 10 * layers * q


def test_a_token_uses_the_experts_that_it_chooses():
    model = make(CASES["mixtral-window"])
    config, footprint = model.config, measure(StateDict(model).model_info)
    expert = 3 * config.hidden_size * config.intermediate_size
    idle = config.num_local_experts - config.num_experts_per_tok
    layers = config.num_hidden_layers
    assert footprint.parameters - footprint.active_parameters == layers * idle * expert
    attention = config.hidden_size * (2 * 64 + 2 * 32)
    router = config.hidden_size * config.num_local_experts
    each = attention + router + config.num_experts_per_tok * expert
    assert footprint.token_weights == layers * each


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "nemotron-h", "kimi-linear"])
def test_weight_bytes_of_other_layers_are_exact(name):
    state = StateDict(make(FAMILIES[name]))
    arrays = {key: state.tensor(key).data for key in state.names()}
    check_bytes(in_format(state.model_info, arrays, "bfloat16"))


@pytest.mark.parametrize("dense", ["bf16", "f32"])
def test_weight_bytes_are_exact(dense):
    checkpoint = default_checkpoint()
    backend = open_backend("cpu", dense, threads=1)
    loaded = load_model(checkpoint.model_info, checkpoint, backend, Stage(64))
    assert weight_bytes(checkpoint, dense) == loaded.weight_bytes


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q5_1", "bfloat16"])
def test_weight_bytes_of_other_formats_are_exact(name):
    model = make(Case("Llama", {"hidden_size": 256, "intermediate_size": 512}))
    state = StateDict(model)
    arrays = {key: state.tensor(key).data for key in state.names()}
    if name in ("Q4_K", "Q6_K"):
        rng = np.random.default_rng(0)
        tensors = {
            key: RawTensor(key, a.shape, name, random_blocks(name, rng, *a.shape, scale=0.01))
            if a.ndim == 2
            else RawTensor(key, a.shape, "float32", a)
            for key, a in arrays.items()
        }
        checkpoint = ArrayCheckpoint(state.model_info, tensors)
    else:
        checkpoint = in_format(state.model_info, arrays, name)
    check_bytes(checkpoint)


@pytest.mark.parametrize("bits", [4, 8])
def test_weight_bytes_of_gptq_are_exact(bits):
    config = {**GPTQ, "bits": bits}
    state = StateDict(make(Case("Llama", {})), quantization_config=config)
    tensors, rng = {}, np.random.default_rng(0)
    for name in state.names():
        layer = [state.tensor(name)]
        if name.endswith("_proj.weight"):
            layer = random_layer(name.removesuffix(".weight"), *layer[0].shape, config, rng)
        tensors |= {tensor.name: tensor for tensor in layer}
    info = dataclasses.replace(state.model_info, quantization="gptq")
    check_bytes(ArrayCheckpoint(info, tensors))


@pytest.mark.parametrize("case", ["W4A16 asymmetric", "FP8 blocks", "FP8 tensor"])
def test_weight_bytes_of_compressed_tensors_are_exact(case):
    layout, group = COMPRESSED[case]
    rng = np.random.default_rng(0)

    def make_layer(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
        return compressed_layer(name, values.shape, layout, group, rng)

    check_bytes(make_twins(config_of(layout, group), make_layer)[0])


def test_weight_bytes_of_awq_are_exact():
    rng = np.random.default_rng(0)
    check_bytes(make_twins(AWQ, lambda name, values: awq_layer(name, *values.shape, 32, rng))[0])


def test_weight_bytes_of_interleaved_rows_are_exact(monkeypatch):
    """HQQ packs codes of the first rows with those of later ones."""
    monkeypatch.setattr("galley.models.footprint.SAMPLE_ROWS", 8)
    rng = np.random.default_rng(0)
    check_bytes(make_twins(HQQ, lambda name, values: hqq_layer(name, *values.shape, 4, 32, rng))[0])


def check_bytes(checkpoint: ArrayCheckpoint) -> None:
    backend = open_backend("cpu", "bf16", threads=1)
    loaded = load_model(checkpoint.model_info, checkpoint, backend, Stage(64))
    assert weight_bytes(checkpoint, "bf16") == loaded.weight_bytes


def test_shapes_are_those_of_a_rank():
    source = ShapeSource(Rank(1, 2))
    a, b = Part("a", (64, 32)), Part("b", (96, 32), (0, 32))
    assert [w.shape for w in source.matrix(Matrix((a, b), "outputs"))] == [(48, 32)]
    assert [w.shape for w in source.matrix(Matrix((a,), "inputs"))] == [(64, 16)]
    assert [w.shape for w in source.matrix(Matrix((a,)))] == [(64, 32)]
    assert source.tensors == {"a.weight": (64, 32), "b.weight": (96, 32)}


def test_a_large_model_takes_no_memory():
    """The shapes of 70B, whose weights would be 141 GB."""
    info = default_checkpoint().model_info
    config = info.hf_config | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    footprint = measure(dataclasses.replace(info, hf_config=config, vocab_size=128256))
    assert footprint.parameters == 70_553_706_496
    assert footprint.kv_token_bytes(KVFormat("bfloat16")) == 327_680
    assert math.isclose(
        footprint.flops(0), 2 * (footprint.parameters - 128256 * 8192), rel_tol=1e-4
    )
