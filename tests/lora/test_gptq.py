"""Adapters of a GPTQ model whose inputs have an order of their own (act-order)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from galley import LoRARequest
from tests.lora.checkpoints import random_adapter, save_adapter, uniform
from tests.lora.test_merged import answers, open_model
from tests.quant.test_gptq import CONFIG, expected, random_layer, with_order
from tests.quant.twins import make_twins
from tests.runner.models import ArrayCheckpoint


def save(checkpoint: ArrayCheckpoint, folder: Path) -> Path:
    folder.mkdir()
    tensors = {name: np.asarray(checkpoint.tensor(name).data) for name in checkpoint.names()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(checkpoint.model_info.hf_config))
    return folder


def test_adapters_on_inputs_in_an_order_of_their_own(tmp_path):
    """They answer as on the dequantized weights, but for the rounding of activations."""
    config = {**CONFIG, "desc_act": True}
    rng = np.random.default_rng(0)
    shapes = {}

    def make_layer(name: str, values: np.ndarray):
        shapes[name] = values.shape
        layer = with_order(random_layer(name, *values.shape, config, rng), rng)
        return layer, expected(layer, config)

    twins = make_twins(config, make_layer)
    adapter = save_adapter(tmp_path / "adapter", random_adapter(shapes, uniform(8), 1))
    said = []
    for number, checkpoint in enumerate(twins):
        llm = open_model(
            save(checkpoint, tmp_path / str(number)),
            enable_lora=True,
            quantized_activations="int16",
        )
        said.append(
            [answers(llm, lora_request=r) for r in (None, LoRARequest("a", 1, str(adapter)))]
        )
    (plain, got), (want_plain, want) = said
    assert [tokens for tokens, _ in got] == [tokens for tokens, _ in want]
    for (_, ours), (_, theirs) in zip(plain + got, want_plain + want, strict=True):
        assert np.allclose(ours, theirs, atol=1e-2)
    assert plain != got
