"""A model in a quantized format beside the same model with its dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from galley.config import ModelInfo
from galley.loader import RawTensor
from tests.models.checkpoints import Case, StateDict, make
from tests.runner.models import ArrayCheckpoint, open_runner
from tests.runner.test_quality import teacher_forced

#: Makes the tensors of a layer called so, and its values, float32 [N, K], of its given values.
MakeLayer = Callable[[str, np.ndarray], tuple[list[RawTensor], np.ndarray]]


def raw(name: str, array: np.ndarray) -> RawTensor:
    return RawTensor(name, array.shape, array.dtype.name, array)


def model_info(config: dict[str, Any]) -> ModelInfo:
    """The part of a checkpoint that schemes read, whose `quantization_config` is `config`."""
    return ModelInfo(
        "LlamaForCausalLM",
        {"quantization_config": config},
        vocab_size=1,
        max_position=1,
        dtype="float16",
        quantization=config["quant_method"],
    )


LLAMA = Case("Llama", {"tie_word_embeddings": False})


def make_twins(
    config: dict[str, Any], make_layer: MakeLayer, case: Case = LLAMA
) -> tuple[ArrayCheckpoint, ArrayCheckpoint]:
    """A small model whose projections are quantized, and the same one with dequantized weights."""
    model = make(case)
    state = StateDict(model, quantization_config=config)
    quantized, floats = {}, {}
    for name in state.names():
        tensor = state.tensor(name)
        layer, values = [tensor], tensor.data
        if name.endswith("_proj.weight"):
            layer, values = make_layer(name.removesuffix(".weight"), tensor.data)
        quantized |= {part.name: part for part in layer}
        floats[name] = raw(name, values)
    return (
        ArrayCheckpoint(state.model_info, quantized),
        ArrayCheckpoint(StateDict(model).model_info, floats),
    )


def check_model(config: dict[str, Any], make_layer: MakeLayer, case: Case = LLAMA) -> None:
    """The logits of a model equal those of its dequantized weights, but for the rounding of
    activations."""
    ids = np.random.default_rng(0).integers(0, 131, (2, 40))
    got, want = (
        teacher_forced(open_runner(checkpoint, max_model_len=64, dtype="float32"), ids)
        for checkpoint in make_twins(config, make_layer, case)
    )
    assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()
