"""--hf-overrides and --hf-config-path: changes to a checkpoint's own config."""

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


def info_of(model: str, **config: Any) -> ModelInfo:
    return read_model_info(resolve_source(ModelConfig(model=model, **config), LoadConfig()))


@pytest.mark.parametrize("spelt", ["rope_scaling", "rope_parameters"])
def test_longer_texts_by_an_override(tmp_path: Path, spelt: str) -> None:
    model = folder(tmp_path / "m", BASE)
    assert info_of(model).max_position == 1024
    longer = info_of(model, hf_overrides={spelt: YARN})
    assert longer.max_position == 4096
    assert longer.hf_config["rope_scaling"] == YARN
    assert longer.hf_config["rope_theta"] == 5000.0


def test_overrides_of_sizes_architecture_and_eos(tmp_path: Path) -> None:
    overrides = {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 1, "eos_token_id": 7}
    info = info_of(folder(tmp_path / "m", BASE), hf_overrides=overrides)
    assert (info.architecture, info.hf_config["num_hidden_layers"]) == ("Qwen3ForCausalLM", 1)
    assert info.eos_token_ids == (7,)


def test_an_override_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vocab_size is .two., but must be an integer"):
        info_of(folder(tmp_path / "m", BASE), hf_overrides={"vocab_size": "two"})


def test_a_config_from_elsewhere(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", BASE)
    generation = {"temperature": 0.5}
    other = folder(
        tmp_path / "o", {**BASE, "max_position_embeddings": 99}, generation_config=generation
    )
    for name in (other, f"{other}/config.json"):
        info = info_of(model, hf_config_path=name)
        assert (info.max_position, info.generation) == (99, generation)
        assert info.source == model
    with pytest.raises(ModelError, match=r"no folder with a config\.json") as refused:
        info_of(model, hf_config_path=str(tmp_path / "none"))
    assert refused.value.field == "hf_config_path"


def test_a_gguf_file_takes_both(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    plain = info_of(str(file))
    longer = info_of(str(file), hf_overrides={"max_position_embeddings": 77, "eos_token_id": [3]})
    assert (longer.max_position, longer.eos_token_ids) == (77, (3,))
    assert longer.dtype == plain.dtype

    config = {**plain.hf_config, "max_position_embeddings": 55}
    other = folder(tmp_path / "o", config)
    changed = ModelConfig(model=str(file), hf_config_path=other, hf_overrides={"eos_token_id": 5})
    checkpoint = open_checkpoint(resolve_source(changed, LoadConfig()))
    info = checkpoint.model_info
    assert (info.max_position, info.eos_token_ids) == (55, (5,))
    assert (info.dtype, info.quantization) == (plain.dtype, plain.quantization)
    assert info.source == str(file)
    assert "model.embed_tokens.weight" in checkpoint.names()
