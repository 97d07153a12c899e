"""Adapters in llama.cpp's format: one GGUF file.

general.type = adapter    adapter.type = lora    adapter.lora.alpha
blk.0.attn_q.weight.lora_a    [rank, K]
blk.0.attn_q.weight.lora_b    [N, rank], rows in the order of GGUF's models
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.loader.fields import MAX_HEAD_DIM, MAX_HEADS, Fields
from galley.loader.gguf import GGUFFile, TensorInfo
from galley.loader.gguf_architecture import Architecture
from galley.loader.gguf_names import ARCHITECTURES, deinterleaved_rows, hf_name
from galley.lora.files import read_whole
from galley.lora.tensors import AdapterTensors

_TYPE = {"general.type": "adapter", "adapter.type": "lora"}
_FLOATS = ("float32", "float16", "bfloat16")
_EMBEDDING = "token_embd.weight"
_MAX_ALPHA = 2.0**20


def read_gguf(path: Path, model_info: ModelInfo, most_bytes: int) -> dict[str, AdapterTensors]:
    """The adapter's modules by name of the base model's tensor.

    Args:
        most_bytes: of an adapter of this model in float32.

    Raises:
        ModelError: the file is damaged, too large, of another model or not supported.
    """
    file = GGUFFile(path, read_whole(path, most_bytes))
    architecture = _architecture_of(file, model_info)
    alpha = _alpha_of(file)
    halves: dict[str, dict[str, TensorInfo]] = {}
    for info in file.tensors.values():
        module, _, kind = info.name.rpartition(".")
        if kind not in ("lora_a", "lora_b") or not module.endswith(".weight"):
            raise ModelError(f"{path}: tensor {info.name:.200} is not of a LoRA adapter")
        if info.type.name not in _FLOATS or len(info.shape) != 2:
            raise ModelError(
                f"{path}: tensor {info.name:.200} is {info.type.name} of {list(info.shape)}"
            )
        halves.setdefault(module, {})[kind] = info
    if not halves:
        raise ModelError(f"{path}: has no tensors")
    modules: dict[str, AdapterTensors] = {}
    for module, half in halves.items():
        if len(half) != 2:
            raise ModelError(f"{path}: {module:.200} has {next(iter(half))} alone")
        a, b = (file.data(half[kind]) for kind in ("lora_a", "lora_b"))
        if architecture.interleaved_qk:
            b = _logical_rows(path, module, b, model_info)
        # llama.cpp takes an alpha of 0 as none.
        scale = alpha / a.shape[0] if alpha else 1.0
        name = hf_name(module, architecture).removesuffix(".weight")
        if module == _EMBEDDING:
            raise ModelError(f"{path}: adapters of {name} are not supported in GGUF")
        modules[name] = AdapterTensors(a, b, scale)
    return modules


def _architecture_of(file: GGUFFile, model_info: ModelInfo) -> Architecture:
    for key, wanted in _TYPE.items():
        found = file.get(key)
        if not isinstance(found, str) or found != wanted:
            raise ModelError(f"{file.path}: {key} is {found!r:.80}, not {wanted!r}")
    name = file.get("general.architecture")
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None or architecture.hf_class != model_info.architecture:
        raise ModelError(
            f"{file.path}: is an adapter of {name!r:.80}, the model is {model_info.architecture}"
        )
    if architecture.joined_qkv or architecture.fused:
        raise ModelError(f"{file.path}: GGUF adapters of {name} are not supported")
    return architecture


def _alpha_of(file: GGUFFile) -> float:
    key = "adapter.lora.alpha"
    fields = Fields({key: file.get(key)}, str(file.path))
    alpha = fields.number(key)
    if abs(alpha) > _MAX_ALPHA:
        raise fields.wrong(key, f"at most {_MAX_ALPHA:.0f}")
    return alpha


def _logical_rows(
    path: Path, module: str, b: NDArray[np.generic], model_info: ModelInfo
) -> NDArray[np.generic]:
    """B of q or k with its rows in Hugging Face's order; of others as it is."""
    is_key = ".attn_k." in module
    if not is_key and ".attn_q." not in module:
        return b
    config = Fields(model_info.hf_config, model_info.source)
    heads = config.integer("num_attention_heads", least=1, most=MAX_HEADS)
    default = config.integer("hidden_size") // heads
    head_dim = config.integer("head_dim", default, least=1, most=MAX_HEAD_DIM)
    if is_key:
        heads = config.integer("num_key_value_heads", heads, least=1, most=MAX_HEADS)
    if len(b) != heads * head_dim:
        raise ModelError(
            f"{path}: lora_b of {module:.200} has shape {list(b.shape)}, the model has {heads} "
            f"heads of {head_dim} rows"
        )
    return b[deinterleaved_rows(heads, head_dim)]
