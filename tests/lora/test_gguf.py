"""Adapters in llama.cpp's format answer as those of PEFT do; broken ones are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from galley import LLM, LoRARequest
from galley.config import ModelInfo
from galley.errors import InvalidRequest, ModelError
from galley.lora.gguf import read_gguf
from tests.lora.checkpoints import (
    LINEAR,
    linear_shapes,
    llama,
    random_adapter,
    random_model,
    save_adapter,
    save_base,
    uniform,
)
from tests.lora.test_merged import answers, open_model

HEADS = {"attn_q": 6, "attn_k": 2}
EMBEDDING = "base_model.model.model.embed_tokens.lora_embedding"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def as_gguf(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names and rows as llama.cpp's converter writes them."""
    out = {}
    for name, values in tensors.items():
        if name.startswith(EMBEDDING):
            kind = name[-1].lower()
            out[f"token_embd.weight.lora_{kind}"] = values.T if kind == "a" else values
            continue
        if "lm_head" in name:
            kind = name.removesuffix(".weight")[-1].lower()
            out[f"output.weight.lora_{kind}"] = values
            continue
        layer, _, rest = name.removeprefix("base_model.model.model.layers.").partition(".")
        module, _, kind = rest.removesuffix(".weight").rpartition(".")
        stem = NAMES[module]
        if kind == "lora_B" and stem in HEADS:
            heads, rank = HEADS[stem], values.shape[1]
            values = values.reshape(heads, 2, -1, rank).swapaxes(1, 2).reshape(-1, rank)
        out[f"blk.{layer}.{stem}.weight.{kind.lower()}"] = np.ascontiguousarray(values)
    return out


def save_gguf(path: Path, tensors: Mapping[str, np.ndarray], **keys: Any) -> Path:
    given = {"arch": "llama", "type": "adapter", "kind": "lora", "alpha": 16.0, **keys}
    writer = gguf.GGUFWriter(path, given["arch"])
    writer.add_type(given["type"])
    kind = given["kind"]
    (writer.add_string if isinstance(kind, str) else writer.add_array)("adapter.type", kind)
    if given["alpha"] is not None:
        writer.add_float32("adapter.lora.alpha", given["alpha"])
    if "invocation" in given:
        writer.add_array("adapter.alora.invocation_tokens", given["invocation"])
    for name, values in tensors.items():
        kind = gguf.GGMLQuantizationType.TQ1_0 if values.dtype == np.uint8 else None
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    base = save_base(llama, tmp_path_factory.mktemp("base"))
    return open_model(base, enable_lora=True)


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """Of all linear layers, the head and the embedding."""
    tensors = random_adapter(linear_shapes(random_model(llama), f"{LINEAR}|lm_head"), uniform(8), 1)
    embedding = linear_shapes(random_model(llama), "embed_tokens")["model.embed_tokens"]
    rng = np.random.default_rng(2)
    for letter, shape in (("A", (8, embedding[0])), ("B", (embedding[1], 8))):
        tensors[f"{EMBEDDING}_{letter}"] = rng.normal(0, 0.12, shape).astype(np.float32)
    return tensors


def test_it_answers_as_that_of_peft(
    llm: LLM, tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    peft = save_adapter(tmp_path / "peft", tensors)
    file = save_gguf(tmp_path / "a.gguf", as_gguf(tensors))
    wanted = answers(llm, lora_request=LoRARequest("peft", 1, str(peft)))
    assert answers(llm, lora_request=LoRARequest("gguf", 2, str(file))) == wanted
    assert answers(llm) != wanted


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(0, 1, shape).astype(np.float32)


def info(architecture: str, **config: int) -> ModelInfo:
    config = {"num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 1, **config}
    return ModelInfo(architecture, config, 64, 128, "float32")


def test_q_k_and_v_in_one_tensor(tmp_path: Path) -> None:
    a, b = random(4, 32), random(96, 4)  # four heads of 8: by head in Hugging Face's order
    in_file = b.reshape(4, 3, 8, 4).swapaxes(0, 1).reshape(96, 4)
    tensors = {"blk.0.attn_qkv.weight.lora_a": a, "blk.0.attn_qkv.weight.lora_b": in_file}
    file = save_gguf(tmp_path / "a.gguf", tensors, arch="gptneox")
    [(name, given)] = read_gguf(file, info("GPTNeoXForCausalLM"), 1 << 20).items()
    assert name == "gpt_neox.layers.0.attention.query_key_value"
    np.testing.assert_array_equal(given.a, a)
    np.testing.assert_array_equal(given.b, b)
    assert given.scale == 16 / 4
    tensors["blk.0.attn_qkv.weight.lora_b"] = in_file[:-16]
    file = save_gguf(tmp_path / "b.gguf", tensors, arch="gptneox")
    with pytest.raises(ModelError, match=r"has shape \[80, 4\]"):
        read_gguf(file, info("GPTNeoXForCausalLM", num_attention_heads=8), 1 << 20)


def test_products_that_the_converter_transposes(tmp_path: Path) -> None:
    a, b = random(4, 32), random(96, 4)
    stored = {"lora_a": b.T.copy(), "lora_b": a.T.copy()}
    tensors = {f"blk.0.attn_qkv.weight.{kind}": values for kind, values in stored.items()}
    file = save_gguf(tmp_path / "a.gguf", tensors, arch="gpt2")
    [(name, given)] = read_gguf(file, info("GPT2LMHeadModel"), 1 << 20).items()
    assert name == "transformer.h.0.attn.c_attn"
    np.testing.assert_array_equal(given.a, a)
    np.testing.assert_array_equal(given.b, b)


def test_experts(tmp_path: Path) -> None:
    a, b = random(3, 4, 32), random(3, 48, 4)
    tensors = {"blk.0.ffn_up_exps.weight.lora_a": a, "blk.0.ffn_up_exps.weight.lora_b": b}
    file = save_gguf(tmp_path / "a.gguf", tensors)
    modules = read_gguf(file, info("MixtralForCausalLM"), 1 << 20)
    for i, (name, given) in enumerate(modules.items()):
        assert name == f"model.layers.0.block_sparse_moe.experts.{i}.w3"
        np.testing.assert_array_equal(given.a, a[i])
        np.testing.assert_array_equal(given.b, b[i])
    assert len(modules) == 3


@pytest.mark.parametrize(
    ("arch", "end", "model"),
    [
        ("granitemoe", "_shexp", "GraniteMoeForCausalLM"),
        ("granite", "", "GraniteMoeHybridForCausalLM"),
    ],
)
def test_tensors_that_the_file_has_in_parts(
    tmp_path: Path, arch: str, end: str, model: str
) -> None:
    a, b = random(4, 32), random(96, 4)
    tensors = {}
    for name, part in (("gate", b[:48]), ("up", b[48:])):
        tensors[f"blk.0.ffn_{name}{end}.weight.lora_a"] = a
        tensors[f"blk.0.ffn_{name}{end}.weight.lora_b"] = part
    file = save_gguf(tmp_path / "a.gguf", tensors, arch=arch)
    [(name, given)] = read_gguf(file, info(model), 1 << 20).items()
    assert name == "model.layers.0.shared_mlp.input_linear"
    np.testing.assert_array_equal(given.a, a)
    np.testing.assert_array_equal(given.b, b)
    tensors[f"blk.0.ffn_up{end}.weight.lora_a"] = a + 1
    file = save_gguf(tmp_path / "b.gguf", tensors, arch=arch)
    with pytest.raises(ModelError, match="have different lora_a"):
        read_gguf(file, info(model), 1 << 20)


Q = "blk.0.attn_q.weight"
WIDE = np.ones((8, 72), np.float32)


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        ({}, {"arch": "qwen2"}, "an adapter of 'qwen2', the model is LlamaForCausalLM"),
        ({}, {"arch": "nothing"}, "an adapter of 'nothing'"),
        ({}, {"type": "model"}, "general.type is 'model'"),
        ({}, {"kind": [1, 2]}, "adapter.type is array"),
        ({}, {"kind": "control_vector"}, "adapter.type is 'control_vector'"),
        ({}, {"alpha": None}, "alpha"),
        ({}, {"alpha": float("nan")}, "alpha"),
        ({}, {"alpha": 1e30}, "alpha"),
        ({f"{Q}.lora_a": np.full((8, 72), np.nan, np.float32)}, {}, "not finite"),
        ({f"{Q}.lora_b": np.ones((71, 8), np.float32)}, {}, "6 heads of 12 rows"),
        ({f"{Q}.lora_a": np.ones((8, 71), np.float32)}, {}, "lora_A of .* has shape"),
        ({f"{Q}.lora_a": np.ones((8, 72), np.int32)}, {}, "format int32 is not supported"),
        ({"blk.9.attn_v.weight.lora_a": WIDE}, {}, "has lora_a alone"),
        ({"blk.0.attn_q.bias": np.ones(72, np.float32)}, {}, "not of a LoRA adapter"),
        ({"token_embd.weight.lora_a": WIDE}, {}, r"embed_tokens: LoRA rank 72"),
        ({f"{Q}.lora_b": np.ones((2, 72, 8), np.float32)}, {}, r"and lora_b \[2, 72, 8\]"),
        ({}, {"invocation": [1, 2]}, "activated LoRA"),
    ],
)
def test_wrong_files_are_refused(
    llm: LLM,
    tensors: dict[str, np.ndarray],
    tmp_path: Path,
    changes: dict[str, np.ndarray],
    keys: dict[str, Any],
    message: str,
) -> None:
    file = save_gguf(tmp_path / "a.gguf", as_gguf(tensors) | changes, **keys)
    with pytest.raises(InvalidRequest, match=message):
        answers(llm, lora_request=LoRARequest("a", 3, str(file)))


def test_damaged_files_are_refused(
    llm: LLM, tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = save_gguf(tmp_path / "a.gguf", as_gguf(tensors))
    whole = file.read_bytes()
    for damaged in (b"", b"GGUF", whole[:200], whole[:-64], b"\xff" * 64, whole[:8] + b"\xff" * 64):
        file.write_bytes(damaged)
        with pytest.raises(InvalidRequest):
            answers(llm, lora_request=LoRARequest("a", 3, str(file)))
    codes = np.zeros((2560, 1024), np.float32)
    packed = gguf.quants.quantize(codes, gguf.GGMLQuantizationType.TQ1_0)
    # 5 MB, and 100 MB as float32.
    save_gguf(file, {f"blk.{i}.ffn_up.weight.lora_a": packed for i in range(10)})
    with pytest.raises(InvalidRequest, match="at most"):
        answers(llm, lora_request=LoRARequest("a", 3, str(file)))
    file.write_bytes(whole + b"\0" * (40 << 20))
    with pytest.raises(InvalidRequest, match="at most"):
        answers(llm, lora_request=LoRARequest("a", 3, str(file)))
