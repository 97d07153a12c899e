"""Mistral's own files give the model that Hugging Face's give; what they cannot say is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galley.config import LoadConfig, ModelConfig
from galley.errors import ModelError
from galley.loader import open_checkpoint, resolve_source
from galley.loader.hub import checkpoint_files
from galley.loader.mistral_params import config_of_params
from galley.quant import to_float32
from tests.models.checkpoints import Case, StateDict, make
from tests.runner.models import open_runner
from tests.runner.test_quality import teacher_forced

HEADS = {"q": 4, "k": 2}
NAMES = {
    "model.embed_tokens.": "tok_embeddings.",
    "model.norm.": "norm.",
    "lm_head.": "output.",
    "model.layers.": "layers.",
    ".self_attn.": ".attention.",
    ".input_layernorm.": ".attention_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".mlp.gate_proj.": ".feed_forward.w1.",
    ".mlp.down_proj.": ".feed_forward.w2.",
    ".mlp.up_proj.": ".feed_forward.w3.",
}


def in_their_order(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows as the original rotary embedding pairs them: the halves of each head in turn."""
    rows, k = values.shape
    return values.reshape(heads, 2, rows // heads // 2, k).swapaxes(1, 2).reshape(rows, k)


def consolidated(state: StateDict) -> dict[str, np.ndarray]:
    arrays = {}
    for name, values in state.arrays.items():
        for kind, heads in HEADS.items():
            if name.endswith(f".{kind}_proj.weight"):
                values = in_their_order(values, heads)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        for kind in "qkvo":
            name = name.replace(f".{kind}_proj.", f".w{kind}.")
        arrays[name.replace(".block_sparse_moe.", ".feed_forward.")] = values
    return arrays


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": "F32",
            "shape": array.shape,
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(a, np.float32).tobytes() for a in arrays.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def rope_theta(config: dict[str, Any]) -> float:
    return config.get("rope_theta") or config["rope_parameters"]["rope_theta"]


def params(config: dict[str, Any]) -> dict[str, Any]:
    made = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "rope_theta": rope_theta(config),
        "max_seq_len": 512,
    }
    if "num_local_experts" in config:
        experts = ("num_experts_per_tok", "num_local_experts")
        made["moe"] = {"num_experts_per_tok": config[experts[0]], "num_experts": config[experts[1]]}
    return made


def source(folder: Path, load_format: str = "auto"):
    return resolve_source(ModelConfig(model=str(folder)), LoadConfig(load_format=load_format))


@pytest.fixture(params=["Mistral", "Mixtral"])
def model(request: pytest.FixtureRequest) -> StateDict:
    changes: dict[str, Any] = {"tie_word_embeddings": False, "sliding_window": None}
    if request.param == "Mixtral":
        changes |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    return StateDict(make(Case(request.param, changes)))


def test_a_model_of_params_alone_is_that_of_hugging_face(tmp_path: Path, model: StateDict) -> None:
    write(tmp_path / "consolidated.safetensors", consolidated(model))
    (tmp_path / "params.json").write_text(json.dumps(params(model.model_info.hf_config)))
    checkpoint = open_checkpoint(source(tmp_path))
    assert sorted(checkpoint.names()) == sorted(model.names())
    for name in model.names():
        assert np.array_equal(to_float32(checkpoint.tensor(name)), model.arrays[name]), name
    ids = np.random.default_rng(0).integers(0, 131, (1, 12))
    got, want = (
        teacher_forced(open_runner(each, max_model_len=64, dtype="float32"), ids)
        for each in (checkpoint, model)
    )
    assert np.array_equal(got, want)


def test_the_format_chooses_among_the_files_of_a_folder(tmp_path: Path) -> None:
    model = StateDict(make(Case("Mistral", {"tie_word_embeddings": False})))
    (tmp_path / "config.json").write_text(json.dumps(model.model_info.hf_config, default=str))
    write(tmp_path / "model.safetensors", model.arrays)
    write(tmp_path / "consolidated.safetensors", consolidated(model))
    assert source(tmp_path).format == "safetensors"
    assert source(tmp_path, "runai_streamer").format == "safetensors"
    assert source(tmp_path, "hf").format == "safetensors"
    assert source(tmp_path, "mistral").format == "mistral"
    (tmp_path / "model.safetensors").unlink()
    assert source(tmp_path).format == "mistral"
    with pytest.raises(ModelError, match=r"--load-format runai_streamer: .* holds mistral weights"):
        source(tmp_path, "runai_streamer")
    (tmp_path / "consolidated.safetensors").unlink()
    with pytest.raises(ModelError, match="--load-format mistral"):
        source(tmp_path, "mistral")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "quantization is not supported"),
        ({"vision_encoder": {"dim": 8}}, "vision_encoder is not supported"),
        ({"q_lora_rank": 8}, "q_lora_rank is not supported"),
        ({"dim": "x"}, "dim"),
        ({"moe": {"num_experts": 4}}, "num_experts_per_tok"),
        ({"n_heads": None}, "n_heads"),
    ],
)
def test_what_params_cannot_say_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    plain = {"dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 2, "vocab_size": 9}
    path = tmp_path / "params.json"
    path.write_text(json.dumps(plain))
    assert config_of_params(path)["num_key_value_heads"] == 2
    path.write_text(json.dumps(plain | change))
    with pytest.raises(ModelError, match=message):
        config_of_params(path)


def test_another_tensor_is_an_error(tmp_path: Path) -> None:
    model = StateDict(make(Case("Mistral", {"tie_word_embeddings": False})))
    arrays = {**consolidated(model), "layers.0.attention.wq.qscale_weight": np.ones(1, "f4")}
    write(tmp_path / "consolidated.safetensors", arrays)
    (tmp_path / "params.json").write_text(json.dumps(params(model.model_info.hf_config)))
    with pytest.raises(ModelError, match="qscale_weight is not one of"):
        open_checkpoint(source(tmp_path))


def test_downloads_take_one_form() -> None:
    side = ["params.json", "tekken.json"]
    files = [*side, "consolidated.safetensors", "README.md"]
    assert checkpoint_files(files) == [*side, "consolidated.safetensors"]
    both = [*files, "model.safetensors"]
    assert checkpoint_files(both) == [*side, "model.safetensors"]
    assert checkpoint_files(both, "mistral") == [*side, "consolidated.safetensors"]
