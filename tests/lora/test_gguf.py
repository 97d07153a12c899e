"""Adapters in llama.cpp's format answer as those of PEFT do; broken ones are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from galley import LLM, LoRARequest
from galley.errors import InvalidRequest
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
    for name, values in tensors.items():
        writer.add_tensor(name, values)
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
    return random_adapter(linear_shapes(random_model(llama), LINEAR), uniform(8), seed=1)


def test_it_answers_as_that_of_peft(
    llm: LLM, tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    peft = save_adapter(tmp_path / "peft", tensors)
    file = save_gguf(tmp_path / "a.gguf", as_gguf(tensors))
    wanted = answers(llm, lora_request=LoRARequest("peft", 1, str(peft)))
    assert answers(llm, lora_request=LoRARequest("gguf", 2, str(file))) == wanted
    assert answers(llm) != wanted


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
        ({f"{Q}.lora_a": np.ones((8, 72), np.int32)}, {}, "int32 of"),
        ({"blk.9.attn_v.weight.lora_a": WIDE}, {}, "has lora_a alone"),
        ({"blk.0.attn_q.bias": np.ones(72, np.float32)}, {}, "not of a LoRA adapter"),
        (
            {"token_embd.weight.lora_a": WIDE, "token_embd.weight.lora_b": WIDE.T.copy()},
            {},
            r"adapters of model\.embed_tokens are not supported",
        ),
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
    file.write_bytes(whole + b"\0" * (40 << 20))
    with pytest.raises(InvalidRequest, match="at most"):
        answers(llm, lora_request=LoRARequest("a", 3, str(file)))
