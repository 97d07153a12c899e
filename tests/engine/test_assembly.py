"""The signature that a kept KV cache is reused by: everything that its numbers depend on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from galley.config import CacheConfig, EngineConfig, ModelInfo
from galley.engine.assembly import signature_of


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for file in tmp_path.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    return ModelInfo(
        "LlamaForCausalLM", {}, vocab_size=8, max_position=8, dtype="f32", source=str(tmp_path)
    )


def test_equal_inputs_have_one_signature(model: ModelInfo) -> None:
    assert signature_of(EngineConfig(), model) == signature_of(EngineConfig(), model)
    assert len(signature_of(EngineConfig(), model)) == 32


def test_a_file_of_equal_size_that_replaced_another_changes_it(model: ModelInfo) -> None:
    before = signature_of(EngineConfig(), model)
    file = Path(model.source) / "model.safetensors"
    new = file.with_name("new")
    new.write_bytes(b"WEIGHTS")
    new.replace(file)
    assert signature_of(EngineConfig(), model) != before


def test_a_single_file_is_looked_at_too(model: ModelInfo) -> None:
    file = Path(model.source) / "model.gguf"
    file.write_bytes(b"weights")
    gguf = dataclasses.replace(model, source=str(file))
    before = signature_of(EngineConfig(), gguf)
    os.utime(file, ns=(10**18, 10**18))
    assert signature_of(EngineConfig(), gguf) != before


def test_configuration_and_model_change_it(model: ModelInfo) -> None:
    signatures = {
        signature_of(EngineConfig(), model),
        signature_of(EngineConfig(cache=CacheConfig(block_size=32)), model),
        signature_of(EngineConfig(), dataclasses.replace(model, hf_config={"rope_theta": 1.0})),
    }
    assert len(signatures) == 3
