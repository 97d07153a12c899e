"""--hf-overrides and --hf-config-path: what is said in place of a checkpoint's own config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from galley.config import LoadConfig, ModelConfig, ModelInfo
from galley.errors import ModelError
from galley.loader import open_checkpoint, read_model_info, resolve_source
from tests.loader.gguf_files import write_gguf

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def folder(path: Path, config: dict[str, Any], **files: Any) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return str(path)


def facts(model: str, **config: Any) -> ModelInfo:
    return read_model_info(resolve_source(ModelConfig(model=model, **config), LoadConfig()))


@pytest.mark.parametrize("spelt", ["rope_scaling", "rope_parameters"])
def test_longer_texts_by_an_override(tmp_path: Path, spelt: str) -> None:
    model = folder(tmp_path / "m", BASE)
    assert facts(model).max_position == 1024
    longer = facts(model, hf_overrides={spelt: YARN})
    assert longer.max_position == 4096
    assert longer.hf_config["rope_scaling"] == YARN
    assert longer.hf_config["rope_theta"] == 5000.0


def test_sizes_class_and_ends_by_overrides(tmp_path: Path) -> None:
    overrides = {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 1, "eos_token_id": 7}
    found = facts(folder(tmp_path / "m", BASE), hf_overrides=overrides)
    assert (found.architecture, found.hf_config["num_hidden_layers"]) == ("Qwen3ForCausalLM", 1)
    assert found.eos_token_ids == (7,)


def test_an_override_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vocab_size is .two., but must be an integer"):
        facts(folder(tmp_path / "m", BASE), hf_overrides={"vocab_size": "two"})


def test_a_config_from_elsewhere(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", BASE)
    generation = {"temperature": 0.5}
    other = folder(
        tmp_path / "o", {**BASE, "max_position_embeddings": 99}, generation_config=generation
    )
    for name in (other, f"{other}/config.json"):
        found = facts(model, hf_config_path=name)
        assert (found.max_position, found.generation) == (99, generation)
        assert found.source == model
    with pytest.raises(ModelError, match=r"no folder with a config\.json") as refused:
        facts(model, hf_config_path=str(tmp_path / "none"))
    assert refused.value.field == "hf_config_path"


def test_a_gguf_file_takes_both(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    plain = facts(str(file))
    longer = facts(str(file), hf_overrides={"max_position_embeddings": 77, "eos_token_id": [3]})
    assert (longer.max_position, longer.eos_token_ids) == (77, (3,))
    assert longer.dtype == plain.dtype

    config = {**plain.hf_config, "max_position_embeddings": 55}
    other = folder(tmp_path / "o", config)
    changed = ModelConfig(model=str(file), hf_config_path=other, hf_overrides={"eos_token_id": 5})
    checkpoint = open_checkpoint(resolve_source(changed, LoadConfig()))
    found = checkpoint.model_info
    assert (found.max_position, found.eos_token_ids) == (55, (5,))
    assert (found.dtype, found.quantization) == (plain.dtype, plain.quantization)
    assert found.source == str(file)
    assert "model.embed_tokens.weight" in checkpoint.names()
