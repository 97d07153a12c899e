"""Adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.

base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight    [rank, K]
base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight    [N, rank]
base_model.model.model.embed_tokens.lora_embedding_A              [rank, vocabulary]
base_model.model.model.embed_tokens.lora_embedding_B              [hidden, rank]
base_model.model.lm_head.weight                                   a module of modules_to_save
base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector   [N], of DoRA
base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias             [N], of lora_bias
base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias         [N], of bias
base_model.model.model.layers.0.mlp.experts.lora_A.weight                [experts * rank, K]
base_model.model.model.layers.0.mlp.experts.lora_B.weight                [N, rank * experts]

The last two are of one parameter with the matrices of all experts (target_parameters); where there
are two such, the other's are of mlp.experts.base_layer.

PEFT also saves the base model's embedding and head where an adapter adds to them. As in vLLM, these
are not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.loader.hf_names import model_name
from galley.loader.safetensors import SafetensorsFile
from galley.loader.text_part import TEXT_OF, text_name
from galley.lora.config import LoRAConfig, read_config
from galley.lora.files import read_whole
from galley.lora.tensors import AdapterTensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Values of --max-lora-rank.
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_PREFIX = "base_model.model."
_FLOATS = ("float32", "float16", "bfloat16")
#: Tensors that are no half of an adapter: a trained copy of a module, the base model's own.
_COPY, _BASE = "copy", "base"
#: Vectors: of DoRA, of B, in place of the module's own.
_MAGNITUDE, _B_BIAS, _BIAS = _VECTORS = "magnitude", "B_bias", "bias"
#: Last names of embeddings and heads, of which PEFT may save the base model's own.
_EMBEDDINGS = {"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_out", "embed_in"}
#: Parts of names of tensors that are something else.
_REFUSED = {
    "lora_magnitude_vector": "use_dora is not set",
    "lora_B.bias": "lora_bias is not set",
    ".bias": 'bias is "none"',
    "token_adapter": "trained tokens are not supported",
}


def read_peft(path: Path, model_info: ModelInfo, most_bytes: int) -> dict[str, AdapterTensors]:
    """The adapter's modules by name of the base model's tensor.

    The file is read as a whole: one that is written to later changes nothing.

    Args:
        path: a folder.
        most_bytes: of an adapter of this model in float32.

    Raises:
        ModelError: a file is missing, damaged, too large or not supported.
    """
    config = read_config(path / CONFIG)
    file = SafetensorsFile(path / WEIGHTS, _read(path, most_bytes))
    halves: dict[str, dict[str, NDArray[np.generic]]] = {}
    for name in file.names():
        module, kind = _split(path, name, config)
        raw = file.tensor(name)
        if raw.dtype not in _FLOATS or len(raw.shape) != 2 - (kind in _VECTORS):
            raise ModelError(f"{path}: tensor {name:.200} is {raw.dtype} of {list(raw.shape)}")
        if kind != _BASE:
            halves.setdefault(module, {})[kind] = raw.data
        elif raw.shape[0] != model_info.vocab_size:
            raise ModelError(
                f"{path}: tensor {name:.200} has {raw.shape[0]} rows, the model a vocabulary of "
                f"{model_info.vocab_size}: added tokens are not supported"
            )
    if not halves:
        raise ModelError(f"{path}: {WEIGHTS} has no tensors")
    return {
        _renamed(module, model_info): _tensors_of(path, module, half, config)
        for module, half in halves.items()
    }


def _tensors_of(
    path: Path, module: str, half: dict[str, NDArray[np.generic]], config: LoRAConfig
) -> AdapterTensors:
    copy = half.pop(_COPY, None)
    vectors = {kind: half.pop(kind).astype(np.float32) for kind in _VECTORS if kind in half}
    if copy is not None and not half:
        none = np.zeros((0, copy.shape[1]), copy.dtype), np.zeros((copy.shape[0], 0), copy.dtype)
        return AdapterTensors(*none, 1.0, copy, bias=vectors.get(_BIAS))
    if not half:
        raise ModelError(f"{path}: {module:.200} has a bias alone: that is not supported")
    if len(half) != 2:
        raise ModelError(f"{path}: {module:.200} has lora_{next(iter(half))} alone")
    rank, wanted = half["A"].shape[0], config.rank_of(module)
    # Of a parameter with all experts' matrices it is a multiple.
    if not rank or rank % wanted or (rank != wanted and not _is_experts(module)):
        raise ModelError(f"{path}: {module:.200} has rank {rank}, {CONFIG} says {wanted}")
    if config.dora and _MAGNITUDE not in vectors:
        raise ModelError(f"{path}: {module:.200} has no lora_magnitude_vector")
    return AdapterTensors(
        half["A"],
        half["B"],
        config.scale_of(module),
        copy,
        experts=rank // wanted,
        magnitude=vectors.get(_MAGNITUDE),
        b_bias=vectors.get(_B_BIAS),
        bias=vectors.get(_BIAS),
    )


def _is_experts(module: str) -> bool:
    return module.removesuffix(".base_layer").endswith("experts")


def _read(path: Path, most_bytes: int) -> bytes:
    weights = path / WEIGHTS
    if not weights.is_file():
        torch_file = path / "adapter_model.bin"
        hint = " (adapter_model.bin is not supported)" if torch_file.is_file() else ""
        raise ModelError(f"{weights}: there is no such file{hint}")
    return read_whole(weights, most_bytes)


def _split(path: Path, name: str, config: LoRAConfig) -> tuple[str, str]:
    """The module of a tensor, and what it is: "A" or "B", a trained copy, or the base's own."""
    if name.startswith(_PREFIX):
        vector = _vector(name.removeprefix(_PREFIX), config)
        if vector is not None:
            return vector
        module, _, kind = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if kind in ("lora_A", "lora_B") and name.endswith(".weight"):
            return module, kind[-1]
        if kind in ("lora_embedding_A", "lora_embedding_B"):
            return module, kind[-1]
        if name.endswith(".base_layer.weight"):
            return module, _BASE
        last = kind
        if name.endswith(".weight") and not _is_refused(name):
            saved = f"{module}.{last}" if module else last
            return saved, _COPY if config.saves(saved) else _base_of(path, name, last)
    for end, reason in _REFUSED.items():
        if end in name:
            raise ModelError(f"{path}: tensor {name:.200}: {reason}")
    raise ModelError(f"{path}: tensor {name:.200} is not of a LoRA adapter")


def _vector(name: str, config: LoRAConfig) -> tuple[str, str] | None:
    """The module of a vector that acts, and which one it is; None = it is none."""
    for ends, kind, acts in (
        ((".lora_magnitude_vector", ".lora_magnitude_vector.weight"), _MAGNITUDE, config.dora),
        ((".lora_B.bias",), _B_BIAS, config.lora_bias),
        ((".base_layer.bias", ".bias"), _BIAS, config.biases or config.saves(name)),
    ):
        for end in ends:
            if acts and name.endswith(end):
                return name.removesuffix(end), kind
    return None


def _is_refused(name: str) -> bool:
    return any(end in name for end in _REFUSED)


def _base_of(path: Path, name: str, module: str) -> str:
    """The base model's embedding or head (save_embedding_layers)."""
    if module not in _EMBEDDINGS:
        raise ModelError(
            f"{path}: tensor {name:.200} is not of a LoRA adapter, and modules_to_save does not "
            f"name {module:.80}"
        )
    return _BASE


def _renamed(module: str, model_info: ModelInfo) -> str:
    """As the model calls the tensor."""
    tensor = f"{module}.weight"
    is_part = TEXT_OF in model_info.hf_config
    wanted = text_name(tensor) if is_part else model_name(model_info.architecture, tensor)
    return (wanted or tensor).removesuffix(".weight")
