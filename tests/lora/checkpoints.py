"""Random adapters in PEFT's format, and base models with them merged."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 72,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def qwen2() -> Any:
    config = transformers.Qwen2Config(**SIZES, tie_word_embeddings=True)
    return transformers.Qwen2ForCausalLM(config)


def phi3() -> Any:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**SIZES))


def gpt2() -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 211,
        "n_embd": 72,
        "n_layer": 2,
        "n_head": 6,
        "n_positions": 256,
    }
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ids))


@functools.cache
def random_model(make: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    model = make()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    return model


def save_base(make: Callable[[], Any], folder: Path) -> Path:
    random_model(make).save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path, tensors: Mapping[str, np.ndarray], rank: int = 8, **config: object
) -> Path:
    """An adapter of these tensors; `config` replaces keys of its adapter_config.json."""
    folder.mkdir(parents=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / WEIGHTS)
    keys = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(keys | config))
    return folder


WEIGHTS = "adapter_model.safetensors"


def uniform(rank: int) -> Callable[[str], int]:
    """Every module has this rank."""
    return lambda module: rank


def random_adapter(
    shapes: Mapping[str, tuple[int, ...]],
    rank_of: Callable[[str], int],
    seed: int,
    size: float = 0.12,
) -> dict[str, np.ndarray]:
    """Tensors of an adapter of these modules, [N, K] each."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for module, (n, k) in shapes.items():
        rank = rank_of(module)
        name = f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = rng.normal(0, size, (rank, k)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.normal(0, size, (n, rank)).astype(np.float32)
    return tensors


def is_transposed(module: Any) -> bool:
    """Whether the module's weight is [K, N]."""
    return type(module).__name__ == "Conv1D"


def linear_shapes(model: Any, pattern: str) -> dict[str, tuple[int, int]]:
    """Linear modules whose last name matches → [N, K]."""
    shapes = {}
    for name, module in model.named_modules():
        if re.fullmatch(pattern, name.rpartition(".")[2]) and hasattr(module, "weight"):
            shape = tuple(module.weight.shape)
            shapes[name] = shape[::-1] if is_transposed(module) else shape
    return shapes


def save_merged(
    make: Callable[[], Any],
    tensors: Mapping[str, np.ndarray],
    scale_of: Callable[[str], float],
    folder: Path,
) -> Path:
    """The base model with W + scale * B A."""
    model = random_model(make)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() for name, value in before.items()}
    for name, a in tensors.items():
        if ".lora_A." not in name:
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = tensors[name.replace("lora_A", "lora_B")]
        added = torch.from_numpy(b @ a * np.float32(scale_of(module)))
        weight = state[f"{module}.weight"]
        weight += added.T if is_transposed(model.get_submodule(module)) else added
    model.load_state_dict(state)
    model.save_pretrained(folder)
    model.load_state_dict(before)
    return folder
