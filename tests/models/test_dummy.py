"""Random weights: the right names and shapes, equal for equal seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from galley.config import LoadConfig, ModelConfig
from galley.errors import ModelError
from galley.loader import Checkpoint, open_checkpoint, resolve_source

TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def _dummy(model: Path | str, seed: int = 0) -> Checkpoint:
    config = ModelConfig(model=str(model), seed=seed)
    return open_checkpoint(resolve_source(config, LoadConfig(load_format="dummy")))


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        (LlamaConfig, "LlamaForCausalLM", {}),
        (LlamaConfig, "LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}),
        (LlamaConfig, "LlamaForCausalLM", {"mlp_bias": True}),
        (Qwen2Config, "Qwen2ForCausalLM", {}),
        (Qwen3Config, "Qwen3ForCausalLM", {}),
    ],
)
def test_names_and_shapes_are_those_of_transformers(
    tmp_path: Path, kind: type[PretrainedConfig], name: str, options: dict[str, bool]
) -> None:
    config = kind(**TINY, architectures=[name], **options)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del theirs["lm_head.weight"]
    checkpoint = _dummy(tmp_path)
    assert {n: checkpoint.tensor(n).shape for n in checkpoint.names()} == theirs


def test_weights_depend_only_on_seed_and_name() -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    first, again, other = _dummy("", 1), _dummy("", 1), _dummy("", 2)
    other.tensor("model.layers.0.mlp.up_proj.weight")
    values = first.tensor(name)
    assert values.dtype == "bfloat16"
    assert values.shape == (1536, 576)
    assert np.array_equal(values.data, again.tensor(name).data)
    assert not np.array_equal(values.data, other.tensor(name).data)
    assert not np.array_equal(values.data, first.tensor("model.layers.4.mlp.up_proj.weight").data)
    assert 0.015 < values.data.astype(np.float32).std() < 0.025
    assert (first.tensor("model.norm.weight").data == 1).all()
    with pytest.raises(ModelError, match="no tensor lm_head"):
        first.tensor("lm_head.weight")
