"""config.json, generation_config.json and templates of a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from galley.errors import ModelError
from galley.loader.hf_info import info_of_directory, read_generation_config

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}


def _directory(path: Path, config: Any = None, **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    values = BASE if config is None else config
    (path / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / f"{name}.json").write_text(text)
    return path


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (LlamaConfig, "LlamaForCausalLM"),
        (MistralConfig, "MistralForCausalLM"),
        (Qwen2Config, "Qwen2ForCausalLM"),
        (Qwen3Config, "Qwen3ForCausalLM"),
    ],
)
def test_configs_as_transformers_writes_them(
    tmp_path: Path, kind: type[PretrainedConfig], name: str
) -> None:
    config = kind(
        architectures=[name],
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        eos_token_id=7,
        dtype="bfloat16",
    )
    config.save_pretrained(tmp_path)
    model_info = info_of_directory(tmp_path)
    assert model_info.architecture == name
    assert model_info.vocab_size == 100
    assert (model_info.max_position, model_info.dtype, model_info.eos_token_ids) == (
        4096,
        "bfloat16",
        (7,),
    )
    assert model_info.hf_config["rope_theta"] == 5000.0
    assert model_info.hf_config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_missing_keys_have_defaults(tmp_path: Path) -> None:
    model_info = info_of_directory(_directory(tmp_path))
    assert model_info.dtype == "float32"
    assert (model_info.quantization, model_info.bos_token_id, model_info.eos_token_ids) == (
        None,
        None,
        (),
    )
    assert (model_info.generation, model_info.chat_template) == ({}, None)
    assert model_info.source == str(tmp_path)


SCALINGS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, int]] = {
    "none": ({}, None, 1024),
    "null": ({"rope_scaling": None}, None, 1024),
    "default": ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, None, 1024),
    "old spelling": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_type": "linear", "factor": 2.0},
        2048,
    ),
    "dynamic": (
        {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
        {"rope_type": "dynamic", "factor": 3.0},
        3072,
    ),
    "llama3": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_type": "llama3", "factor": 8.0},
        1024,
    ),
    "yarn": (
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
            }
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        2048,
    ),
}


@pytest.mark.parametrize("case", SCALINGS)
def test_rope_scaling_and_the_longest_sequence(tmp_path: Path, case: str) -> None:
    config, scaling, longest = SCALINGS[case]
    model_info = info_of_directory(_directory(tmp_path, BASE | config))
    assert model_info.hf_config["rope_scaling"] == scaling
    assert model_info.max_position == longest


def test_generation_config_adds_ends_and_defaults(tmp_path: Path) -> None:
    generation = {
        "eos_token_id": [2, 5],
        "bos_token_id": 1,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 1,
        "max_new_tokens": 99,
        "do_sample": True,
        "transformers_version": "4",
    }
    path = _directory(tmp_path, BASE | {"eos_token_id": 2}, generation_config=generation)
    model_info = info_of_directory(path)
    assert (model_info.bos_token_id, model_info.eos_token_ids) == (1, (2, 5))
    want = {"temperature": 0.7, "top_k": 20, "top_p": 1.0, "max_new_tokens": 99}
    assert model_info.generation == want
    assert read_generation_config(path) == want


def test_a_missing_generation_config_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: cannot be read"):
        read_generation_config(tmp_path)


def test_the_quantisation_method_is_read(tmp_path: Path) -> None:
    config = BASE | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    assert info_of_directory(_directory(tmp_path, config)).quantization == "awq"


def test_chat_templates_are_read_from_every_place(tmp_path: Path) -> None:
    path = _directory(tmp_path, tokenizer_config={"chat_template": "from config"})
    assert info_of_directory(path).chat_template == "from config"
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    _directory(path, tokenizer_config={"chat_template": named})
    assert info_of_directory(path).chat_template == "D"
    (path / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert info_of_directory(path).chat_template == "from json"
    (path / "chat_template.jinja").write_text("from jinja")
    assert info_of_directory(path).chat_template == "from jinja"


BAD_CONFIGS: dict[str, tuple[Any, str]] = {
    "empty": ("", "not valid JSON"),
    "not json": ("{'a': 1}", "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "a list": ("[]", "holds list, not a JSON object"),
    "no architecture": ({k: v for k, v in BASE.items() if k != "architectures"}, "architectures"),
    "architecture is a number": (BASE | {"architectures": [3]}, "architectures"),
    "architectures empty": (BASE | {"architectures": []}, "architectures"),
    "vocab": (BASE | {"vocab_size": {"a": 1}}, "vocab_size"),
    "positions": (BASE | {"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    "dtype": (BASE | {"torch_dtype": "int4"}, "dtype 'int4' is not supported"),
    "dtype is a number": (BASE | {"torch_dtype": 16}, "torch_dtype is 16"),
    "eos is text": (BASE | {"eos_token_id": "</s>"}, "eos_token_id"),
    "eos negative": (BASE | {"eos_token_id": [-1]}, "eos_token_id"),
    "rope scaling is text": (BASE | {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
    "factor is text": (BASE | {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2'"),
    "factor zero": (BASE | {"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
    "factor infinite": (
        json.dumps(BASE | {"rope_scaling": {"type": "linear", "factor": float("inf")}}),
        "finite",
    ),
    "quantisation": (BASE | {"quantization_config": 4}, "quantization_config is 4"),
    "vision": (BASE | {"text_config": {"hidden_size": 3}}, "not a text-only model"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_config_is_an_error_that_names_file_and_key(tmp_path: Path, case: str) -> None:
    config, says = BAD_CONFIGS[case]
    with pytest.raises(ModelError, match=says) as caught:
        info_of_directory(_directory(tmp_path, config))
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("generation_config", {"temperature": "hot"}, "temperature is 'hot'"),
        ("generation_config", {"eos_token_id": 1.5}, "eos_token_id"),
        ("generation_config", "[1", "not valid JSON"),
        ("tokenizer_config", {"chat_template": 5}, "chat_template"),
        ("tokenizer_config", {"chat_template": [{"name": "x"}]}, "chat_template"),
    ],
)
def test_a_bad_side_file_is_an_error(tmp_path: Path, file: str, content: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        info_of_directory(_directory(tmp_path, None, **{file: content}))
    assert f"{file}.json" in str(caught.value)


def test_a_directory_without_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        info_of_directory(tmp_path)
